"""The `sweep` block of a recipe: what is searched, what is measured, how many trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from preftune.errors import RequestError, did_you_mean

WIN_RATE = "win_rate"
SAMPLERS, PRUNERS = ("tpe", "random", "grid"), ("median", "none")
_KEYS = (
    "command", "search", "objective", "direction", "trials", "seeds", "sampler", "pruner", "judge", "prompts", "limit",
)  # fmt: skip
_RANGE_KEYS = ("low", "high", "step", "log")
_SMALLER_IS_BETTER = ("loss", "kl", "perplexity")
_SET_HERE = ("output_dir", "seed", "resume_from_checkpoint")

Value: TypeAlias = "float | int | str | bool | None"


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two others."""

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """All values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> list[Value]:
        return [self.low, self.high]

    def draw(self, trial: Any) -> Value:
        """A value of this trial."""
        make = trial.suggest_int if self.whole else trial.suggest_float
        step = {} if self.step is None else {"step": self.step}
        value: Value = make(self.name, self.low, self.high, log=self.log, **step)
        return value if self.whole else float(f"{value:.6g}")

    @property
    def grid(self) -> list[Value] | None:
        """All values; None without a step."""
        if self.step is None and not self.whole:
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = [self.low + place * step for place in range(count)]
        return list(values) if self.whole else [float(f"{value:.6g}") for value in values]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values."""

    name: str
    values: Sequence[Value]

    @property
    def ends(self) -> list[Value]:
        return list(self.values)

    @property
    def grid(self) -> list[Value]:
        return list(self.values)

    def draw(self, trial: Any) -> Value:
        """A value of this trial."""
        value: Value = trial.suggest_categorical(self.name, list(self.values))
        return value


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """All that decides a sweep."""

    recipe: Mapping[str, Any]
    """Without the block: fields of the command."""
    space: Sequence[Range | Choice]
    command: str
    objective: str
    direction: str
    """`maximize` or `minimize`."""
    trials: int
    seeds: Sequence[int]
    sampler: str
    pruner: str
    judge: str | None = None
    prompts: str | None = None
    limit: int | None = None

    @property
    def note(self) -> str:
        """What speaks against the objective; empty if nothing does."""
        scaled = self.objective == "eval_loss" or ("rewards/" in self.objective and "accurac" not in self.objective)
        names = [one.name for one in self.space if one.name in ("beta", "loss_type")]
        if not (scaled and names) or self.command in ("sft", "reward"):
            return ""
        return (
            f"{self.objective} has another scale for each {' and '.join(names)}, so its best value prefers a scale. "
            f"Use eval_rewards/accuracies or {WIN_RATE} as the objective."
        )

    @property
    def better(self) -> str:
        """For people."""
        return "higher" if self.direction == "maximize" else "lower"


def read_plan(values: Mapping[str, Any], *, name: str) -> SweepPlan:
    """From a recipe's values.

    Args:
        values: with YAML's types.
        name: of the file, for messages.
    Raises: RequestError, naming the key and the fix.
    """
    block = values.get("sweep")
    if not isinstance(block, Mapping) or not isinstance(block.get("search"), Mapping) or not block["search"]:
        raise RequestError(
            f"{name} has no ranges to search. Add a block to the recipe, for example:\n\nsweep:\n  trials: 20\n"
            "  search:\n    learning_rate: {low: 1e-6, high: 1e-4, log: true}\n    beta: [0.05, 0.1, 0.3]"
        )
    for key in block:
        if key not in _KEYS:
            raise RequestError(f"{name}: sweep: {key}: there is no such setting. {did_you_mean(key, _KEYS)}".strip())
    recipe = {key.replace("-", "_"): value for key, value in values.items() if key != "sweep"}
    space = [_dimension(str(key).replace("-", "_"), value, name) for key, value in block["search"].items()]
    for dimension in space:
        if dimension.name in _SET_HERE:
            raise RequestError(f"{name}: sweep: search: {dimension.name} is set by the sweep. Remove it.")
    command = str(block.get("command", "dpo"))
    objective = str(block.get("objective", "eval_loss" if command in ("sft",) else "eval_rewards/accuracies"))
    if command == "reward" and "objective" not in block:
        objective = "eval_accuracy"
    smaller = any(word in objective.lower() for word in _SMALLER_IS_BETTER)
    direction = _one_of(block, "direction", ("maximize", "minimize"), "minimize" if smaller else "maximize", name)
    seeds = block.get("seeds", [recipe.get("seed", 42)])
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise RequestError(f"{name}: sweep: seeds: {seeds}: give different whole numbers, as [0, 1, 2].")
    plan = SweepPlan(
        recipe=recipe,
        space=space,
        command=command,
        objective=objective,
        direction=direction,
        trials=_count(block, "trials", 20, name),
        seeds=seeds,
        sampler=_one_of(block, "sampler", SAMPLERS, "tpe", name),
        pruner=_one_of(block, "pruner", PRUNERS, "median", name),
        judge=block.get("judge"),
        prompts=block.get("prompts"),
        limit=_count(block, "limit", 64, name) if objective == WIN_RATE else None,
    )
    _check(plan, block, name)
    return plan


def _check(plan: SweepPlan, block: Mapping[str, Any], name: str) -> None:
    if (plan.objective == WIN_RATE) != (plan.judge is not None):
        raise RequestError(
            f"{name}: sweep: objective: {WIN_RATE} and judge belong together: {WIN_RATE} needs a judge, as "
            "judge: openai:MODEL@URL, and other objectives ask none."
        )
    if plan.objective != WIN_RATE and ("prompts" in block or "limit" in block):
        raise RequestError(f"{name}: sweep: prompts and limit belong to objective: {WIN_RATE}. Remove them.")
    held_out = any(plan.recipe.get(key) for key in ("eval_fraction", "eval_dataset_name"))
    if plan.objective.startswith("eval_") and not held_out:
        raise RequestError(
            f"{name}: sweep: objective: {plan.objective} is measured on held-out rows, and the recipe holds none out. "
            "Add eval_fraction: 0.1, or eval_dataset_name."
        )
    if plan.sampler == "grid" and any(dimension.grid is None for dimension in plan.space):
        raise RequestError(f"{name}: sweep: sampler: grid needs values, or ranges with a step.")


def _dimension(key: str, value: Any, name: str) -> Range | Choice:
    where = f"{name}: sweep: search: {key}"
    if isinstance(value, list) and value and not any(isinstance(one, list | dict) for one in value):
        if len({repr(one) for one in value}) < len(value):
            raise RequestError(f"{where}: {value} has a value twice. Give different ones.")
        return Choice(key, value)
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys():
        raise RequestError(f"{where}: give values, as [0.05, 0.1], or a range, as {{low: 0.05, high: 0.5, log: true}}.")
    for word in value:
        if word not in _RANGE_KEYS:
            raise RequestError(f"{where}: {word}: a range has {', '.join(_RANGE_KEYS)}.")
    numbers = [value["low"], value["high"], *([value["step"]] if value.get("step") is not None else [])]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise RequestError(f"{where}: {numbers}: low, high and step must be numbers.")
    log = value.get("log") or False
    if not isinstance(log, bool):
        raise RequestError(f"{where}: log: {log!r} is neither true nor false. Write log: true, or leave it out.")
    found = Range(key, value["low"], value["high"], value.get("step"), log)
    if not found.low < found.high or (found.step is not None and not found.step > 0):
        raise RequestError(f"{where}: low must be below high, and a step above 0.")
    if found.log and (found.low <= 0 or found.step is not None):
        raise RequestError(f"{where}: a logarithmic range has low above 0, and no step.")
    return found


def _one_of(block: Mapping[str, Any], key: str, allowed: Sequence[str], default: str, name: str) -> str:
    value = block.get(key)
    value = "none" if value is None and key in block else default if value is None else str(value)
    if value not in allowed:
        raise RequestError(f"{name}: sweep: {key}: {value}: give one of {', '.join(allowed)}.")
    return value


def _count(block: Mapping[str, Any], key: str, default: int, name: str) -> int:
    value = block.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"{name}: sweep: {key}: {value}: give a whole number of at least 1.")
    return value
