"""SFT to DPO, and SFT to reward model to PPO, each from the command line on the demo's data: did answers get better?

    python benchmarks/pipelines.py [--seeds 0 1 2] [--folder runs/pipelines]

For every seed these commands: preftune sft on the chosen answers of the demo's 128 training pairs, preftune merge, then
preftune dpo on the pairs, and preftune reward with preftune ppo. The demo's 64 held-out prompts are answered greedily
and judged by the demo's rule (right first, then brief): each against the model that SFT gave, that one against
SmolLM2-135M-Instruct as received, and DPO against PPO. Learning rates were chosen on seed 100 and 48 training prompts
that no run trains on (docs/notes.md). Stages that are done are not repeated; the result is kept in
results/pipelines.json, with the time of each training. No goal: what comes out is kept as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from record import RESULTS, provenance, rounded, write_result

from preftune.demo.pairs import Row, demo_rows, spread, training_pairs

PAIRS = 128
COMMON = ["--use_peft", "--lora_dropout", "0", "--report_to", "none", "--no_report", "--save_strategy", "no"]
SFT = ["--num_train_epochs", "1", "--learning_rate", "1e-4"]
DPO = ["--num_train_epochs", "1", "--learning_rate", "1e-4", "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1"]
REWARD = ["--num_train_epochs", "1", "--learning_rate", "3e-4"]
PPO = [
    "--total_episodes", "256", "--learning_rate", "1e-4", "--num_ppo_epochs", "2", "--num_mini_batches", "4",
    "--max_new_tokens", "48", "--generation_batch_size", "32",
]  # fmt: skip
ANSWERS = ["--max_new_tokens", "96", "--batch_size", "64"]
JUDGED = {
    "sft": ("sft", None),
    "dpo": ("dpo", "sft"),
    "ppo": ("ppo", "sft"),
    "dpo_from_the_base": ("dpo", None),
    "ppo_from_the_base": ("ppo", None),
    "dpo_against_ppo": ("dpo", "ppo"),
}
"""Name -> who is judged, against whom; None: SmolLM2-135M-Instruct as received."""


def main() -> int:
    options = arguments()
    from preftune.models import demo_model

    model = options.model or demo_model()
    folder = Path(options.folder)
    write_data(folder)
    seeds = {seed: of_one_seed(model, folder, seed) for seed in options.seeds}
    pooled = {name: pooled_rate(folder, options.seeds, name) for name in JUDGED}
    for name, rate in pooled.items():
        print(f"  {name}: {rate['win_rate']:.1%} ({rate['ci_low']:.1%} to {rate['ci_high']:.1%})")
    result = {
        "benchmark": "pipelines",
        "case": {
            "model": Path(model).name,
            "pairs": PAIRS,
            "prompts": len(demo_rows("test")),
            "judge": "key-fact",
            "settings": {"sft": SFT, "dpo": DPO, "reward": REWARD, "ppo": PPO, "all": COMMON, "answers": ANSWERS},
        },
        "win_rates": rounded(pooled),
        "seeds": rounded(seeds),
        **provenance(f"python benchmarks/pipelines.py --seeds {' '.join(map(str, options.seeds))}"),
    }
    write_result(result, options.results, "pipelines")
    return 0


def write_data(folder: Path) -> None:
    """The demo's pairs and prompts as files."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = spread(demo_rows("train"), PAIRS), demo_rows("test")
    write(folder / "train.jsonl", training_pairs(train))
    write(folder / "held_out.jsonl", training_pairs(test))
    write(
        folder / "prompts.jsonl",
        [{**pair, **judged_by(row)} for pair, row in zip(training_pairs(test), test, strict=True)],
    )


def judged_by(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "topic", "key_fact")}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def of_one_seed(model: str, folder: Path, seed: int) -> dict[str, Any]:
    """Both pipelines and their evaluations; figures of each."""
    place, data = folder / f"seed{seed}", ["--data", str(folder / "train.jsonl")]
    place.mkdir(exist_ok=True)
    sft = str(place / "sft-merged")
    both = [*COMMON, "--seed", str(seed)]
    train(place / "sft", ["sft", "--model", model, *data, *SFT, *both])
    run(place / "sft-merged", ["merge", str(place / "sft"), "-o", sft])
    train(place / "dpo", ["dpo", "--model", sft, *data, *DPO, *both])
    held_out = ["--eval_dataset_name", str(folder / "held_out.jsonl")]
    train(place / "reward", ["reward", "--model", sft, *data, *held_out, *REWARD, *both])
    train(place / "ppo", ["ppo", "--model", sft, "--reward_model", str(place / "reward"), *data, *PPO, *both])
    for name, (aligned, baseline) in JUDGED.items():
        who = {None: model, "sft": sft}.get(baseline, str(place / str(baseline)))
        judged = sft if aligned == "sft" else str(place / aligned)
        words = ["eval", "--model", judged, "--baseline", who, "--prompts", str(folder / "prompts.jsonl")]
        run(place / f"eval-{name}", [*words, "--judge", "key-fact", *ANSWERS, "-o", str(place / f"eval-{name}")])
    trained = {name: figures(place / name) for name in ("sft", "dpo", "reward", "ppo")}
    return {"training": trained, "judged": {name: judgement(place / f"eval-{name}") for name in JUDGED}}


def train(folder: Path, words: list[str]) -> None:
    run(folder, [*words, "--output_dir", str(folder)])


def run(folder: Path, words: list[str]) -> None:
    """One command, unless its `done` file is there; its words are in a log beside the folder."""
    done, log = folder.with_name(f"{folder.name}.done"), folder.with_name(f"{folder.name}.log")
    if done.exists():
        return
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "preftune.cli.main", *words]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"preftune {words[0]} ended with {code}; see {log}")
    seconds = time.perf_counter() - began
    done.write_text(f"{seconds:.1f}\n", encoding="utf-8")
    print(f"{folder.parent.name} {folder.name}: {seconds:.0f} s", flush=True)


def figures(folder: Path) -> dict[str, Any]:
    """What a run directory says of its training: first and last values of what it logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    told: dict[str, Any] = {"steps": record["steps"], "seconds": record["spent"]["seconds"]}
    names = ("objective/scores", "objective/kl", "completions/mean_length", "eval_accuracy", "rewards/margins")
    for name in names:
        values = [line[name] for line in lines if name in line]
        if values:
            told[name] = {"first": values[0], "last": values[-1]}
    told["peak_gb"] = max(line["memory/peak_gb"] for line in lines if "memory/peak_gb" in line)
    return told


def judgement(folder: Path) -> dict[str, Any]:
    """Of one evaluation: the win rate, right answers and lengths of both sides."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    names = ("win_rate", "ci_low", "ci_high", "wins", "ties", "losses", "verdict", "mean_tokens")
    right = {side: summary["key_fact_rate"][side]["rate"] for side in ("base", "aligned")}
    equal = summary["length_controlled"]
    return {name: summary[name] for name in names} | {
        "right": right,
        "at_equal_length": None if equal is None else equal["win_rate"],
    }


def pooled_rate(folder: Path, seeds: Sequence[int], name: str) -> dict[str, Any]:
    """All seeds together; a prompt is one cluster."""
    from preftune.evaluation.two_models.types import JudgedRow
    from preftune.statistics.intervals import win_rate

    outcomes, prompts = [], []
    for seed in seeds:
        for line in (folder / f"seed{seed}/eval-{name}/verdicts.jsonl").read_text(encoding="utf-8").splitlines():
            verdict = json.loads(line)
            outcomes.append(JudgedRow.from_dict(verdict).value)
            prompts.append(verdict["id"])
    return win_rate(outcomes, prompts).to_dict()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", default="runs/pipelines", help="of the runs (runs/pipelines)")
    parser.add_argument("--model", help="another chat model (SmolLM2-135M-Instruct)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
