"""Methods on people's judgements: which of them agrees with people on prompts that it has not seen?

    python examples/pandalm/accuracy_race.py --data pandalm_human.jsonl.gz --output runs/pandalm-race

Each seed holds out another part of the prompts and trains every method on the same pairs, with the beta of its authors
and one learning rate. The accuracy is that of each method's own rewards on the held-out pairs. Killed and started
again, it continues with the runs that are missing. At the end it writes race.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peft import LoraConfig
from train import answer, interval, position, prompt_of

from preftune import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, load_model, load_pairs, load_tokenizer
from preftune.comparison.methods import METHODS, Method
from preftune.models import demo_model
from preftune.statistics.intervals import paired_shares, share
from preftune.storage.jsonl import write_json

RACED = ("dpo", "ipo", "bco", "apo_zero", "simpo", "orpo")
SHARE = 0.25
"""Of the prompts, held out by each seed."""


class Parts(NamedTuple):
    """Pairs of a seed."""

    train: Any
    test: Any


def parts(pairs: Any, seed: int, most: int) -> Parts:
    """Another quarter of the prompts is held out by each of four seeds, and the training pairs are a sample."""
    held_out = [int(position(prompt_of(pair)) / SHARE) == seed % round(1 / SHARE) for pair in pairs]
    known = [i for i, out in enumerate(held_out) if not out]
    drawn = random.Random(seed).sample(known, min(most, len(known)))
    return Parts(pairs.select(drawn), pairs.select([i for i, out in enumerate(held_out) if out]))


def train(method: Method, seed: int, data: Parts, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training, and its rewards of the held-out pairs."""
    steps = len(data.train) // options.batch_size
    common: dict[str, Any] = {
        "output_dir": str(options.output / "trainers" / f"{method.name}-seed{seed}"),
        "learning_rate": options.learning_rate,
        "beta": method.values[0],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_steps": steps,
        "logging_steps": max(1, steps // 4),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "per_device_eval_batch_size": options.batch_size,
        **method.fixed,
    }
    rest: dict[str, Any] = {
        "processing_class": load_tokenizer(name),
        "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    }
    if method.command == "kto":
        config = KTOConfig(per_device_train_batch_size=2 * options.batch_size, **common)
        trainer: Any = KTOTrainer(load_model(name), args=config, train_dataset=labelled(data.train), **rest)
    else:
        plain = DPOConfig(per_device_train_batch_size=options.batch_size, **common)
        trainer = DPOTrainer(load_model(name), args=plain, train_dataset=data.train, **rest)
    before = None if trainer.objective.needs_reference else rewards(trainer, data.test)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    found = {"method": method.name, "title": method.title, "seed": seed, "beta": method.values[0], "steps": steps}
    after = rewards(trainer, data.test)
    return found | {
        "training_pairs": len(data.train),
        "seconds": round(seconds, 1),
        "reference_scores": {"from_cache": trainer.reference.hits, "computed": trainer.reference.misses},
        "won": won(after),
        "won_before": None if before is None else won(before),
    }


def labelled(pairs: Any) -> list[dict[str, Any]]:
    """Two rows of a pair, good and bad."""
    return [
        {"prompt": list(pair.prompt), "completion": list(side), "label": side is pair.chosen}
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    ]


def rewards(trainer: Any, pairs: Any) -> np.ndarray[Any, Any]:
    """Shape (pairs, 2): chosen, rejected."""
    if isinstance(trainer, DPOTrainer):
        return np.asarray(trainer.predict(pairs).predictions)
    of_answers = trainer.predict(labelled(pairs)).predictions
    return np.asarray(of_answers)[:, :2].sum(1).reshape(-1, 2)


def won(rewards_N2: np.ndarray[Any, Any]) -> list[float]:
    """Per pair 1 where the chosen answer has the higher reward, 0.5 where both have the same."""
    chosen, rejected = rewards_N2.T
    return ((chosen > rejected) + 0.5 * (chosen == rejected)).tolist()


def longer(pairs: Any) -> list[float]:
    """The baseline: choose the longer answer."""
    return won(np.asarray([(len(answer(pair.chosen)), len(answer(pair.rejected))) for pair in pairs]))


def main() -> None:
    options = arguments()
    name = options.model or demo_model()
    pairs = load_pairs(options.data).as_chat()
    for seed in options.seeds:
        data = parts(pairs, seed, options.max_pairs)
        write_json(options.output / f"seed{seed}.json", baseline(data.test))
        for method in options.methods:
            file = options.output / f"{method}-seed{seed}.json"
            if not file.exists():
                record = train(METHODS[method], seed, data, name, options)
                write_json(file, record)
                print(f"{file.stem}: {np.mean(record['won']):.1%} in {record['seconds']:.0f} s", flush=True)
    result = {"model": Path(name).name, **settings(options), "methods": [summary(m, options) for m in options.methods]}
    write_json(options.output / "race.json", result)
    print(table(result))


def baseline(pairs: Any) -> dict[str, Any]:
    """What is known of a seed's held-out pairs before any training."""
    return {"prompts": [prompt_of(pair) for pair in pairs], "longer": longer(pairs)}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("seeds", "learning_rate", "batch_size", "max_pairs")}


def summary(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy over the held-out pairs of all seeds. A prompt is held out by one seed at most: prompts are clusters."""
    runs = [read(options.output / f"{method}-seed{seed}.json") for seed in options.seeds]
    known = [read(options.output / f"seed{seed}.json") for seed in options.seeds]
    won_N, longer_N, prompts = (
        [one for part in lists for one in part]
        for lists in ([run["won"] for run in runs], [k["longer"] for k in known], [k["prompts"] for k in known])
    )
    short = [i for i, value in enumerate(longer_N) if value < 0.5]
    before = None
    if runs[0]["won_before"] is not None:
        before = interval(share([one for run in runs for one in run["won_before"]], prompts))
    return {
        **{key: runs[0][key] for key in ("method", "title", "beta", "steps", "training_pairs")},
        "pairs": len(won_N),
        "prompts": len(set(prompts)),
        "accuracy": interval(share(won_N, prompts)),
        "by_seed": [round(float(np.mean(run["won"])), 3) for run in runs],
        "longer": interval(share(longer_N, prompts)),
        "above_longer": interval(paired_shares(longer_N, won_N, prompts)),
        "where_the_shorter_won": interval(share([won_N[i] for i in short], [prompts[i] for i in short])),
        "before_training": before,
        "seconds": [run["seconds"] for run in runs],
        "reference_scores": [run["reference_scores"] for run in runs],
    }


def table(result: dict[str, Any]) -> str:
    """The rows of the README, best first."""
    lines = [
        "| method | beta | accuracy | by seed | above the longer answer | where the shorter answer won |",
        "|---|---|---|---|---|---|",
    ]
    for one in sorted(result["methods"], key=lambda one: -one["accuracy"]["value"]):
        seeds = ", ".join(f"{100 * value:.1f}" for value in one["by_seed"])
        shares = f"{percent(one['accuracy'])} | {seeds} | {points(one['above_longer'])}"
        lines.append(f"| {one['title']} | {one['beta']:g} | {shares} | {percent(one['where_the_shorter_won'])} |")
    lines.append(f"| choose the longer answer | | {percent(result['methods'][0]['longer'])} | | | 0% |")
    return "\n".join(lines)


def percent(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f}% ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def points(value: dict[str, float]) -> str:
    return f"{100 * value['value']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path, default=Path("runs/pandalm-race"))
    parser.add_argument("--methods", nargs="+", default=list(RACED), choices=sorted(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs in a step")
    parser.add_argument("--max_pairs", type=int, default=192, help="training pairs of a seed")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
