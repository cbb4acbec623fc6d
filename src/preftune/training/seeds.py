"""One training with several seeds: processes of their own, one after the other, with one cache and one held-out split.

FOLDER/seed-N       the run directory of seed N
FOLDER/seed-N.log   what its process printed
FOLDER/seeds.json   the held-out figures of every seed, their mean and their spread
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preftune.errors import PreftuneError
from preftune.statistics.intervals import WinRate, mean_interval
from preftune.statistics.over_seeds import win_rate_over_seeds, wins_over_seeds
from preftune.storage.jsonl import read_lines
from preftune.storage.run_directory import SEEDS, write_json
from preftune.training.stages import last_words, run_command

_SAID = ("loss", "rewards/margins", "rewards/accuracies", "mean_token_accuracy")
"""The figures of a held-out set that are printed: eval_loss, or eval_NAME_loss with several sets."""
_TIMED = ("_runtime", "_per_second", "_seconds")


def train_seeds(
    command: str, words: Sequence[str], seeds: Sequence[int], folder: Path, *, echo: Callable[[str], None]
) -> list[str]:
    """Trains with every seed; a seed that is done is not trained again, and one that was cut off goes on.

    Args:
        command: of preftune.
        words: its flags, without seed, output_dir and resume.
    Returns: the result in sentences.
    Raises: PreftuneError when a training fails; KeyboardInterrupt when it has stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds, start=1):
        log = folder / f"seed-{seed}.log"
        echo(f"seed {seed} ({number} of {len(seeds)}): training in {folder}/seed-{seed}; {log} has its output")
        own = ["--seed", str(seed), "--output_dir", str(folder / f"seed-{seed}"), "--resume", "auto"]
        if run_command([command, *words, *own], log) != 0:
            raise PreftuneError(f"Seed {seed} failed: {last_words(log)} Correct it, and give the same command again.")
    return record(folder, seeds)


def record(folder: Path, seeds: Sequence[int]) -> list[str]:
    """Writes seeds.json, and says it in sentences."""
    ends = [_last_evaluation(folder / f"seed-{seed}") for seed in seeds]
    shared = [name for name in ends[0] if all(name in end for end in ends)]
    figures = {name: _spread([end[name] for end in ends]) for name in shared}
    rate = _judged(folder, seeds)
    judged = {} if rate is None else {"win_rate": rate.to_dict()}
    write_json(folder / SEEDS, {"seeds": list(seeds), "figures": figures, **judged})
    sentences = [
        f"{name} over {len(seeds)} seeds: {one['mean']:.4g} (standard deviation {one['sd']:.2g}; "
        f"{', '.join(f'{value:.4g}' for value in one['per_seed'])})"
        for name, one in figures.items()
        if name.endswith(tuple(f"_{said}" for said in _SAID))
    ]
    if rate is not None:
        sentences.append(f"Judged against the reference, the trained model {wins_over_seeds(rate, len(seeds))}.")
    return sentences


def _last_evaluation(run: Path) -> dict[str, float]:
    """The held-out figures of the end of a run: of all held-out sets, each of which has a line."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if any(name.startswith("eval_") for name in line)]
    return {
        name: float(value)
        for line in lines
        if line.get("step") == lines[-1].get("step")
        for name, value in line.items()
        if name.startswith("eval_") and isinstance(value, int | float) and not name.endswith(_TIMED)
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95% interval over seeds."""
    found = mean_interval(values)
    ends = {"ci_low": found.low, "ci_high": found.high} if math.isfinite(found.low) else {}
    return {"per_seed": list(values), "mean": found.mean, "sd": float(np.std(values, ddof=1)), **ends}


def _judged(folder: Path, seeds: Sequence[int]) -> WinRate | None:
    """The win rate of the last evaluation with `eval_judge`, over prompts and seeds; None without one."""
    by_seed = []
    for seed in seeds:
        lines = [line for line in read_lines(folder / f"seed-{seed}" / "eval_answers.jsonl") if "value" in line]
        last = [line for line in lines if line["step"] == lines[-1]["step"]]
        by_seed.append({(str(line["set"]), str(line["id"])): line for line in last})
    prompts = list(by_seed[0])
    if not prompts or any(list(one) != prompts for one in by_seed):
        return None
    return win_rate_over_seeds(
        [[float(one[prompt]["value"]) for prompt in prompts] for one in by_seed],
        unread_SP=[[bool(one[prompt]["unjudged"]) for prompt in prompts] for one in by_seed],
    )
