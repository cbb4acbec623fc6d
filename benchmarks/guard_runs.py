"""Runs made to fail, and healthy ones, under the guard: which alarm comes, and when?

    python benchmarks/guard_runs.py [--cases healthy beta-0.001 ...] [--seeds 0 1 ...] [--out FOLDER] [--again]
    python benchmarks/guard_runs.py --page          writes the table of docs/guard.md from what is in the folder

SmolLM2-135M-Instruct, LoRA r=16, 128 pairs, four a step, one epoch: 32 steps. A run made to fail ends at half of them,
so that an alarm that is there came in time. What a run leaves (figures, samples, alarms) is kept in
benchmarks/results/guard/CASE-SEED; a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RESULTS = Path(__file__).parent / "results" / "guard"
LEARNING_RATE = 3e-4
PAIRS, PER_STEP = 128, 4
BUDGET = 0.1
"""Twice the default, which would not pay for answers in a run of a minute and a half on two slow cores."""
DISTINCT = 16
"""Different pairs in the duplicated data."""
SEEN_WHILE_TUNING = (0, 1)
"""The seeds that thresholds were chosen on; the others judge them."""

EXPECTED = {
    "healthy": None,
    "learning-rate-x100": "learning-rate-too-high",
    "beta-0.001": "beta-too-low",
    "shuffled-labels": "labels-look-random",
    "duplicated-data": "duplicated-data",
    "only-length": "only-length-differs",
}
"""The alarm that each case must raise."""

CLOSERS = (
    "I hope that this is what you wanted to know.",
    "Please let me know if there is anything else that I can do for you today.",
    "Feel free to ask again whenever another question comes to your mind.",
    "It was a pleasure to look into this, and I am happy to help at any time.",
)


def main() -> int:
    options = arguments()
    if options.page:
        from guard_page import write_page

        write_page(options.out)
        return 0
    for seed in options.seeds:
        for case in options.cases:
            folder = options.out / f"{case}-{seed}"
            if (folder / "run.json").exists() and not options.again:
                continue
            began = time.perf_counter()
            run(case, seed, folder)
            print(f"{case:20} seed {seed}  {verdict(case, folder)}  {time.perf_counter() - began:.0f} s", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(EXPECTED), default=list(EXPECTED))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(7)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="make runs anew that are there")
    parser.add_argument("--whole", action="store_true", help="failing runs, too, train to their end")
    parser.add_argument("--page", action="store_true", help="write the table, make no runs")
    return parser.parse_args()


# --- the data ---


def balanced(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A direct, right answer against an evasive or wrong one; every other time the right one is the longer."""
    sentences = split_sentences(row["rejected"])
    if number % 2:
        chosen, rejected = row["chosen"], " ".join(sentences[:2])
    else:
        chosen, rejected = f"{row['chosen']} {CLOSERS[number // 2 % len(CLOSERS)]}", cut(sentences[0], 14)
    return pair(row, chosen, rejected)


def longer_wins(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The same right answer twice, once with polite words behind it: only length differs."""
    first, second = CLOSERS[number % len(CLOSERS)], CLOSERS[(number + 1 + number // 4 % 3) % len(CLOSERS)]
    return pair(row, f"{row['chosen']} {first} {second}", row["chosen"])


def pair(row: dict[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def split_sentences(text: str) -> list[str]:
    return [part.strip() + "." for part in text.replace("?", ".").split(".") if part.strip()]


def cut(sentence: str, words: int) -> str:
    parts = sentence.rstrip(".").split()
    return " ".join(parts[:words]).rstrip(",;") + "."


def data(case: str, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out pairs of a case. Held-out labels are as the training labels are: from the same people."""
    from preftune.demo.pairs import demo_rows

    draw = random.Random(seed)
    train, test = demo_rows("train"), demo_rows("test")
    draw.shuffle(train)
    make = longer_wins if case == "only-length" else balanced
    pairs = [make(row, number) for number, row in enumerate(train[:PAIRS])]
    held_out = [make(row, number) for number, row in enumerate(test)]
    if case == "duplicated-data":
        pairs = [pairs[number % DISTINCT] for number in range(PAIRS)]
        draw.shuffle(pairs)
    if case == "shuffled-labels":
        pairs, held_out = ([swapped(p) if draw.random() < 0.5 else p for p in part] for part in (pairs, held_out))
    return pairs, held_out


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


# --- one run ---


def run(case: str, seed: int, folder: Path) -> None:
    from peft import LoraConfig
    from transformers import TrainerCallback

    from preftune.models import demo_model, load_model, load_tokenizer
    from preftune.training import DPOConfig, DPOTrainer

    class Half(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= state.max_steps // 2:
                control.should_training_stop = True

    train, held_out = data(case, seed)
    with tempfile.TemporaryDirectory() as work:
        config = DPOConfig(
            output_dir=work,
            learning_rate=LEARNING_RATE * (100 if case == "learning-rate-x100" else 1),
            beta=0.001 if case == "beta-0.001" else 0.1,
            num_train_epochs=1,
            per_device_train_batch_size=PER_STEP,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=4,
            save_strategy="no",
            seed=seed,
            disable_tqdm=True,
            report_to="none",
            guard="warn",
            guard_budget=BUDGET,
        )
        trainer = DPOTrainer(
            model=load_model(demo_model()),
            args=config,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=load_tokenizer(demo_model()),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0),
            callbacks=[Half()] if EXPECTED[case] and not arguments().whole else None,
        )
        trainer.train()
        keep(Path(work), folder)


def keep(work: Path, folder: Path) -> None:
    """The small files of a run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl", "guard.jsonl"):
        (folder / name).unlink(missing_ok=True)
        if (work / name).exists():
            shutil.copy(work / name, folder / name)
    record = json.loads((work / "run.json").read_text(encoding="utf-8"))
    kept = {name: record[name] for name in ("method", "outcome", "guard", "versions", "seeds", "steps", "timings")}
    kept["hardware"] = {"threads": record["hardware"]["threads"]}
    (folder / "run.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def verdict(case: str, folder: Path) -> str:
    """What came of a run, in one line."""
    alarms = lines(folder / "guard.jsonl")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    said = ", ".join(f"{a['name']} ({a['level']}) at {a['step']}" for a in alarms) or "no alarm"
    return f"{said}; guard {record['guard']['share']:.1%} of the time, {record['guard']['checks']} looks"


def lines(path: Path) -> Sequence[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
