"""Memory per row: what a training holds of its data, from reading to the second step, at two sizes.

    python benchmarks/data_memory.py [--rows 100000 1000000] [--no-pass] [--method dpo] [--out FILE]

Pairs of some 100 characters are generated as JSON lines, and read, tokenised, scored under the reference and trained on
for two steps, in a process of its own per size, by a random model so small that its memory does not matter. What counts
is anonymous memory (`RssAnon` of /proc/self/status): what a process holds, and what only swap could free. Pages of
mapped files are not counted: the system drops them when it needs the memory. It is read every 20 ms. The base of a
phase is the most that the same process had in it with 20,000 rows (imports, buffers, freed memory that cannot be
given back); the bytes per row are those of the further rows, at the worst moment. `--no-pass` trains an adapter, whose
reference needs no pass over all rows. Fails where a further row costs more bytes than stated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

BYTES_PER_ROW = 200
FEW = 20_000
"""Rows of the training with which the others are compared."""
METHODS = ("dpo", "kto", "sft", "reward")


def main() -> int:
    options = arguments()
    if options.child:
        print(json.dumps(measure(options.file, options.method, scored=not options.no_pass)))
        return 0
    from record import RESULTS, provenance, rounded, write_result

    sizes = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            write_rows(file, rows)
            words = ["--child", "--file", str(file), "--method", options.method, *["--no-pass"] * options.no_pass]
            environment = {**os.environ, "PREFTUNE_CACHE": f"{folder}/cache"}
            command = [sys.executable, __file__, *words]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            found["file_bytes_per_row"] = file.stat().st_size / rows
        for name, phase in found["phases"].items():
            phase["per_row"] = (phase["peak"] - found["of_few"][name]["peak"]) / (rows - FEW)
            phase["held_per_row"] = phase["held"] / rows
        sizes[str(rows)] = found
        for name, phase in found["phases"].items():
            print(
                f"{rows:>9,} rows, {name:<10} {phase['per_row']:7.1f} bytes per further row; held at its end "
                f"{phase['held'] / 1e6:6.1f} MB, at most {phase['peak'] / 1e6:6.1f} MB ({FEW:,} rows: at most "
                f"{found['of_few'][name]['peak'] / 1e6:.1f} MB); {phase['seconds']:.1f} s",
                flush=True,
            )
    worst = max(phase["per_row"] for found in sizes.values() for phase in found["phases"].values())
    words = [f"--method {options.method}", *["--no-pass"] * options.no_pass]
    result = {
        "benchmark": "data_memory",
        "method": options.method,
        "reference_pass": not options.no_pass,
        "sizes": sizes,
        "worst_bytes_per_further_row": worst,
        "stated": BYTES_PER_ROW,
        **provenance(f"python benchmarks/data_memory.py --rows {' '.join(map(str, options.rows))} {' '.join(words)}"),
    }
    name = "data_memory" + "-no-pass" * options.no_pass + f"-{options.method}" * (options.method != "dpo")
    write_result(rounded(result), options.out or RESULTS, name)
    if worst > BYTES_PER_ROW:
        print(f"FAILED: {worst:.0f} bytes per further row, more than {BYTES_PER_ROW}")
    return int(worst > BYTES_PER_ROW)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--method", choices=METHODS, default="dpo")
    parser.add_argument("--no-pass", action="store_true", help="train an adapter: no pass of the reference")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_rows(file: Path, count: int) -> None:
    """Pairs whose prompts all differ; one in a hundred is a pair with equal sides, which is dropped and counted."""
    generator = np.random.default_rng(0)
    words = np.array(
        "the river runs past old stone houses where people sit and talk about weather boats and fish".split()
    )
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            prompt, chosen, rejected = (" ".join(words[generator.integers(0, len(words), size)]) for size in (5, 6, 6))
            sides = {"chosen": chosen, "rejected": chosen if number % 100 == 99 else rejected}
            out.write(json.dumps({"prompt": f"{number}: {prompt}?", **sides}) + "\n")


def measure(file: Path, method: str, *, scored: bool) -> dict[str, Any]:
    """All phases of a training, one after the other: on a few rows, and then on all."""
    with tempfile.TemporaryDirectory() as folder:
        few, very_few = Path(folder) / "few.jsonl", Path(folder) / "very_few.jsonl"
        write_rows(very_few, 2500)
        phases(very_few, method, Watch(), scored=scored)  # imports
        base = anonymous()
        write_rows(few, FEW)
        of_few = Watch(base)
        phases(few, method, of_few, scored=scored)
    watch = Watch(base)
    facts = phases(file, method, watch, scored=scored)
    return {**facts, "base": base, "of_few": of_few.phases, "phases": watch.phases}


def phases(file: Path, method: str, watch: Watch, *, scored: bool) -> dict[str, Any]:
    trainer = train(str(file), method, watch, scored=scored)
    groups, report = trainer.train_dataset, trainer.reports["train"]
    facts: dict[str, Any] = {"groups": len(groups), "dropped": report.rows_dropped, "tokens": groups.total_tokens}
    return {**facts, "fingerprint": groups.fingerprint, "losses": trainer.losses}


def train(source: Any, method: str, watch: Watch, *, scored: bool) -> Any:
    """Two steps of a training on a source. Phases: reading, tokenising and setting up; the reference pass and steps."""
    from peft import LoraConfig

    import preftune
    from tiny import tiny_model, tiny_tokenizer

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    names = {"dpo": "DPO", "kto": "KTO", "sft": "SFT", "reward": "Reward"}
    trainer_class, config_class = (getattr(preftune, names[method] + part) for part in ("Trainer", "Config"))
    referenced = {"guard": "off", "precompute_ref_batch_size": 256} if method in ("dpo", "kto") else {}
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            max_steps=2,
            max_length=512,
            per_device_train_batch_size=4,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
            logging_steps=1,
            **referenced,
        )
        with watch.phase("made"):
            trainer = trainer_class(
                model=tiny_model(**sizes, **heads),
                args=config,
                train_dataset=source,
                processing_class=tiny_tokenizer(chat=False),
                peft_config=None if scored else LoraConfig(r=2, target_modules="all-linear"),
            )
        with watch.phase("trained"):
            trainer.train()
    trainer.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer


class Watch:
    """Anonymous bytes of this process beyond its base, by phase."""

    def __init__(self, base: int | None = None) -> None:
        self.base = anonymous() if base is None else base
        self.phases: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        done, peak = threading.Event(), [0]

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], anonymous() - self.base)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds, held = time.perf_counter() - began, anonymous() - self.base
            done.set()
            watcher.join()
            self.phases[name] = {"held": held, "peak": max(held, *peak), "seconds": seconds}


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    sys.exit(main())
