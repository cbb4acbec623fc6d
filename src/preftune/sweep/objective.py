"""What a trial is worth: a metric of its run, or the win rate of its answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from preftune.errors import RequestError, did_you_mean
from preftune.storage.jsonl import read_lines, read_object
from preftune.storage.run_directory import run_facts
from preftune.sweep.plan import WIN_RATE, SweepPlan
from preftune.training.stages import run_command


def measured(plan: SweepPlan, folder: Path, *, seed: int) -> float:
    """The objective of a run that has finished.

    Raises: RequestError where the run has no such metric, or its evaluation failed.
    """
    if plan.objective == WIN_RATE:
        return _win_rate(plan, folder, seed=seed)
    lines = read_lines(folder / "metrics.jsonl")
    found = [line[plan.objective] for line in lines if isinstance(line.get(plan.objective), int | float)]
    if not found:
        names = sorted({name for line in lines for name in line} - {"step", "time", "epoch"})
        raise RequestError(
            f"objective {plan.objective} is not among the metrics of {folder}. {did_you_mean(plan.objective, names)} "
            f"There are {', '.join(names)}."
        )
    if not math.isfinite(found[-1]):
        raise RequestError(f"objective {plan.objective} of {folder} is {found[-1]}.")
    return float(found[-1])


def _win_rate(plan: SweepPlan, folder: Path, *, seed: int) -> float:
    words = ["eval", "--model", str(folder), "--judge", str(plan.judge), "-o", str(folder / "eval")]
    words += ["--limit", str(plan.limit), "--seed", str(seed)]
    words += [] if plan.prompts is None else ["--prompts", str(plan.prompts)]
    if not (folder / "adapter_config.json").is_file():  # an adapter contains its start
        words += ["--baseline", str(run_facts(folder, "model").get("name"))]
    code = run_command(words, folder / "eval.log.txt")
    rate = read_object(folder / "eval" / "summary.json").get("win_rate")
    value = rate.get("win_rate") if isinstance(rate, dict) else rate
    if not isinstance(value, int | float):
        raise RequestError(f"preftune eval of {folder} ended with code {code}. Read {folder / 'eval.log.txt'}.")
    return float(value)


class Intermediate:
    """Reads a running trial's objective, and asks whether the trial is worth going on with."""

    def __init__(self, file: Path, name: str, ask: Callable[[float, int], bool]) -> None:
        """
        Args:
            file: metrics.jsonl of the run.
            ask: is given a value and its step, and says whether to stop.
        """
        self._file, self._name, self._ask = file, name, ask
        self._seen, self._size = 0, -1

    def __call__(self) -> bool:
        size = self._file.stat().st_size if self._file.exists() else 0
        if size == self._size:
            return False
        self._size = size
        found: Sequence[dict[str, float]] = [line for line in read_lines(self._file) if self._name in line]
        new, self._seen = found[self._seen :], len(found)
        return any(self._ask(float(line[self._name]), int(line["step"])) for line in new)
