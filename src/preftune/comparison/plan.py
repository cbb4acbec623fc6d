"""The budget of a trial, and the settings of the trials, the same number for each method."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from preftune.comparison.methods import Method
from preftune.errors import RequestError, did_you_mean

Unit: TypeAlias = Literal["seconds", "tokens", "pairs"]
Settings: TypeAlias = dict[str, str]
"""Fields of a configuration, as text."""

TRIALS = 3
"""The default number of trials of each method."""

_SCALE: Mapping[str, tuple[Unit, float]] = {
    "s": ("seconds", 1), "sec": ("seconds", 1), "seconds": ("seconds", 1),
    "m": ("seconds", 60), "min": ("seconds", 60), "minutes": ("seconds", 60),
    "h": ("seconds", 3600), "hours": ("seconds", 3600),
    "tokens": ("tokens", 1), "pairs": ("pairs", 1),
}  # fmt: skip
_AMOUNT = re.compile(r"(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)\s*([a-z]+)")


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one trial, the same for all methods. A reward model counts in each trial that needs it."""

    unit: Unit
    amount: float

    @classmethod
    def parse(cls, words: str) -> Budget:
        """From `90s`, `10m`, `2h`, `500000tokens`, `2000pairs`. Raises: RequestError."""
        found = _AMOUNT.fullmatch(words.strip().lower())
        if found is None or found[2] not in _SCALE:
            raise RequestError(
                f"--budget {words}: give a time (90s, 10m, 2h), or a number of tokens or pairs (2000pairs)."
            )
        unit, scale = _SCALE[found[2]]
        amount = float(re.sub("[_,]", "", found[1])) * scale
        if not (math.isfinite(amount) and amount >= 1):
            raise RequestError(f"--budget {words}: give at least 1 second, token or pair.")
        return cls(unit, amount)

    def words(self) -> str:
        """The amount with its unit, as text."""
        return amount_in_words(self.unit, self.amount)

    def half(self) -> Budget:
        """The part of it that a reward model may use."""
        return replace(self, amount=max(1.0, self.amount / 2))

    def less(self, used: float) -> Budget:
        """The rest after `used`; 0 or less if the budget is used up."""
        return replace(self, amount=self.amount - used)


def amount_in_words(unit: Unit, amount: float) -> str:
    """An amount with a suitable unit, as text."""
    if unit != "seconds":
        return f"{amount:,.0f} {unit}"
    if amount < 90:
        return f"{amount:.0f} s"
    return f"{amount / 60:.1f} min" if amount < 5400 else f"{amount / 3600:.1f} h"


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of one method."""

    method: Method
    number: int
    """Number of its settings among the method's, from 1."""
    settings: Mapping[str, str]
    seed: int
    label: str
    """The settings that distinguish it from the method's other trials, as text."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.method.name}-{self.number}-seed{self.seed}"


def parse_settings(words: Sequence[str], flag: str) -> Settings:
    """`name=value` words, one value each. Raises: RequestError."""
    settings = {}
    for name, values in parse_grid(words, flag).items():
        if len(values) > 1:
            raise RequestError(
                f"{flag} {name}={','.join(values)}: these settings apply to all trials, so give one value. Several "
                "values are tried after the flag of a method, such as --dpo."
            )
        settings[name] = values[0]
    return settings


def parse_grid(words: Sequence[str], flag: str) -> dict[str, list[str]]:
    """`name=value,value` words. Raises: RequestError."""
    grid: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not name or not equals or not values.strip(","):
            raise RequestError(f"{flag} {word}: give NAME=VALUE, or NAME=VALUE,VALUE to try several.")
        if name in grid:
            raise RequestError(f"{flag}: {name} is given twice. Give its values once, separated by commas.")
        grid[name] = [value for value in values.split(",") if value]
        if len(set(grid[name])) < len(grid[name]):
            raise RequestError(
                f"{flag} {word}: a value is given twice, and would be tried twice. Give different values."
            )
    return grid


def check_names(grid: Mapping[str, object], known: Sequence[str], flag: str, *, ours: Sequence[str]) -> None:
    """Raises: RequestError for an unknown field, or one that the comparison sets itself."""
    for name in grid:
        if name in ours:
            raise RequestError(f"{flag} {name}=...: the comparison sets {name} itself. Leave it out.")
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"See preftune {flag.strip('-')} --help-all.")
            raise RequestError(f"{flag} {name}=...: there is no such setting. {hint}")


def tried(
    methods: Sequence[Method],
    grids: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    number: int | None = None,
    shared: Mapping[str, str],
) -> dict[str, list[Settings]]:
    """All combinations of each method's values. If a method's strength has no values in `grids`, its usual ones are
    used.

    Args:
        grids: values of settings, by the name of the method.
        number: number of usual values, at most `TRIALS`; by default the number of values that other methods have.
        shared: settings of every training.
    Raises: RequestError unless all methods have the same number of trials.
    """
    own = {math.prod(map(len, grids[m.name].values())) for m in methods if m.strength in grids.get(m.name, {})}
    usual = number or (own.pop() if len(own) == 1 else TRIALS)
    found: dict[str, list[Settings]] = {}
    for method in methods:
        grid = {**method.usual(usual, shared), **grids.get(method.name, {})}
        found[method.name] = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    counts = {method.title: len(found[method.name]) for method in methods}
    if len({*counts.values()}) > 1:
        listed = ", ".join(f"{count} of {title}" for title, count in counts.items())
        most = max(methods, key=lambda method: len(found[method.name]))
        least = min(methods, key=lambda method: len(found[method.name]))
        raise RequestError(
            f"{listed}: all methods must have the same number of trials. Give as many values in --{least.name} "
            f"{least.strength}=... as in --{most.name}, or fewer values and --trials {min(counts.values())}."
        )
    return found


def labels(trials: Sequence[Settings], strength: str) -> list[str]:
    """A label for each trial of a method: the settings that differ, or the strength if none differs."""
    differ = [name for name in trials[0] if len({settings[name] for settings in trials}) > 1]
    return [", ".join(f"{name} {settings[name]}" for name in differ or [strength]) for settings in trials]
