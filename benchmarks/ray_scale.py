"""Work over rows on a Ray cluster of this machine, beside one process: seconds, rows a second, and overhead.

    python benchmarks/ray_scale.py [--rows 200000] [--stages convert score label audit] [--workers 1 2] [--out FILE]

The rows are generated. `convert` cleans pairs, `score` computes reference scores with a random model of two layers,
`label` ranks two answers to each prompt by a rule, and `audit` makes its checks, with words instead of tokens. Each
stage runs as a command of its own: without `--ray`, and with each number of workers on a cluster that is already there.
Seconds are those of the whole command; `work` leaves out those of the same command on 200 rows: imports, and the start
of the workers. The results of all runs of a stage must be the same bytes. Worker processes use one thread, and so does
one process. The table of docs/scaling.md is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # on a shared machine, nice workers wait

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

FEW = 200
SHOWN = {
    "convert": "`convert` with `--dedupe`",
    "score": "`score` with a model of two layers",
    "label": "`label` by a rule of a few string operations",
    "audit": "`audit`",
}
STAGES = ("convert", "score", "label", "audit")
SCORING = ("--use_peft", "--use_cpu", "--per_device_eval_batch_size", "32")
RULE = '''
def overlap(prompt, answer, row):
    """The share of the answer's letter trigrams that are not in the prompt."""
    def grams(text):
        return {text[at : at + 3] for at in range(len(text) - 2)}
    own = grams(answer)
    return len(own - grams(prompt)) / max(1, len(own))
'''


def main() -> int:
    options = arguments()
    import ray
    from record import RESULTS, provenance, rounded, write_result

    began = time.perf_counter()
    ray.init(
        num_cpus=max(options.workers), include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    started = time.perf_counter() - began
    address = ray.get_runtime_context().gcs_address
    folder_of_result = options.out or RESULTS
    command = f"python benchmarks/ray_scale.py --rows {options.rows} --stages {' '.join(options.stages)}"
    stages = earlier(folder_of_result / "ray_scale.json")
    with tempfile.TemporaryDirectory() as folder:
        home = os.getcwd()
        os.chdir(folder)
        prepare(options.rows)
        for stage in options.stages:
            runs = {}
            for workers in (0, *options.workers):
                few, whole = (measured(stage, rows, workers, address) for rows in (FEW, options.rows))
                work = whole["seconds"] - few["seconds"]
                runs["one process" if not workers else f"{workers} worker{'s' * (workers > 1)}"] = {
                    "seconds": whole["seconds"],
                    "start": few["seconds"],
                    "work": work,
                    "rows_per_second": options.rows / work,
                    "result": whole["result"],
                }
                print(f"{stage}, {workers or 'no'} workers: {work:.1f} s after {few['seconds']:.1f} s", flush=True)
            alike = len({run.pop("result") for run in runs.values()}) == 1
            stages[stage] = {"rows": options.rows, "runs": runs, "same_bytes": alike}
            result = {"benchmark": "ray_scale", "seconds_to_start_a_cluster": started, "stages": stages}
            write_result(rounded({**result, **provenance(command)}), folder_of_result, "ray_scale")
        os.chdir(home)
    ray.shutdown()
    print(table(stages))
    differ = [stage for stage in options.stages if not stages[stage]["same_bytes"]]
    if differ:
        print(f"FAILED: the results of {', '.join(differ)} differ")
    return int(bool(differ))


def table(stages: dict[str, Any]) -> str:
    """The rows of docs/scaling.md: seconds of work, and in brackets those of 200 rows."""
    of_stages = [stage["runs"] for stage in stages.values()]
    columns = [column for column in of_stages[-1] if all(column in runs for runs in of_stages)]
    lines = [f"| command | rows | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for stage in (name for name in SHOWN if name in stages):
        runs = [stages[stage]["runs"][column] for column in columns]
        cells = (f"{run['work']:.0f} ({run['start']:.0f})" for run in runs)
        lines.append(f"| {SHOWN[stage]} | {stages[stage]['rows']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def earlier(file: Path) -> dict[str, Any]:
    """The stages that other calls have measured."""
    return dict(json.loads(file.read_text())["stages"]) if file.exists() else {}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="folder of the result")
    options = parser.parse_args()
    options.out = options.out and options.out.absolute()
    return options


def prepare(rows: int) -> None:
    """The model, the rule, and the data of both sizes, in the current folder."""
    from tiny import save_tiny

    save_tiny(Path("model"))
    Path("overlap_rules.py").write_text(RULE, encoding="utf-8")
    for count in (FEW, rows):
        with open(f"pairs-{count}.jsonl", "w") as pairs, open(f"samples-{count}.jsonl", "w") as samples:
            for row in range(count):
                prompt = f"What is {row * 7} plus {row % 13}?"
                answers = [f"It is {row * 8}.", f"I think that {row} is fine."]
                sides = [[{"role": "assistant", "content": answer}] for answer in answers]
                user = [{"role": "user", "content": prompt}]
                line = {"prompt": user, "chosen": sides[0], "rejected": sides[1]}
                pairs.write(json.dumps(line) + "\n")
                for number, answer in enumerate(answers):
                    one = {"id": str(row), "key": f"k{row}", "prompt": prompt, "sample": number, "completion": answer}
                    samples.write(json.dumps({**one, "tokens": 9, "finished": True}) + "\n")


def measured(stage: str, rows: int, workers: int, address: str) -> dict[str, Any]:
    """The seconds of a command, and a digest of what it made."""
    words = {
        "convert": ["convert", f"pairs-{rows}.jsonl", "-o", "out.jsonl", "--dedupe", "--json"],
        "score": ["score", "dpo", "--model", "model", "--data", f"pairs-{rows}.jsonl", *SCORING],
        "audit": ["audit", f"pairs-{rows}.jsonl", "-o", "out", "--json"],
        "label": ["label", f"samples-{rows}.jsonl", "--judge", "rule:overlap_rules:overlap", "-o", "out.jsonl"],
    }[stage]
    words += ["--ray", address, "--ray_workers", str(workers)] if workers else []
    for left in Path().glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        command = [sys.executable, "-m", "preftune", *words]
        done = subprocess.run(command, env={**os.environ, "PREFTUNE_CACHE": cache}, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"preftune {' '.join(words)} failed: {done.stderr[-2000:]}")
        made = result_of(stage, Path(cache), done.stdout)
    return {"seconds": seconds, "result": hashlib.sha256(made).hexdigest()}


def result_of(stage: str, cache: Path, printed: str) -> bytes:
    """What a command made, without times."""
    if stage == "score":
        return scores_in(cache)
    if stage == "audit":
        found = json.loads(printed)
        return json.dumps({name: found[name] for name in found if name not in ("created", "seconds")}).encode()
    return Path("out.jsonl").read_bytes()


def scores_in(cache: Path) -> bytes:
    """All scores, by their keys."""
    (file,) = (cache / "reference").rglob("*.sqlite")
    connection = sqlite3.connect(file)
    digest = hashlib.sha256()
    for key, value in connection.execute("SELECT key, value FROM scores ORDER BY key"):
        digest.update(key + value)
    connection.close()
    return digest.digest()


if __name__ == "__main__":
    sys.exit(main())
