"""What is compared: the budget of a trial, and the settings that are tried, of each method equally many."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from preftune.errors import RequestError, did_you_mean

Method: TypeAlias = Literal["dpo", "ppo"]
METHODS: tuple[Method, ...] = get_args(Method)
NAMES: Mapping[Method, str] = {"dpo": "DPO", "ppo": "reward model + PPO"}
SHORT: Mapping[Method, str] = {"dpo": "DPO", "ppo": "PPO"}

Unit: TypeAlias = Literal["seconds", "tokens", "pairs"]
Settings: TypeAlias = dict[str, str]
"""Fields of a configuration, as they are written in a recipe."""

USUAL: Mapping[Method, Mapping[str, Sequence[str]]] = {
    "dpo": {"beta": ("0.05", "0.1", "0.3")},
    "ppo": {"kl_coef": ("0.02", "0.05", "0.15")},
}
"""What is tried where nothing else is asked for: the strength that holds the policy to where it began."""

TUNED: Mapping[str, Sequence[str]] = {
    "dpo": ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "loss_type", "beta", "label_smoothing"),
    "reward": ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "center_rewards_coefficient"),
    "ppo": (
        "learning_rate", "total_episodes", "per_device_train_batch_size", "num_mini_batches", "num_ppo_epochs",
        "max_new_tokens", "temperature", "kl_coef", "kl_estimator", "kl_target", "kl_horizon", "gamma", "lam",
        "cliprange", "cliprange_value", "vf_coef", "value_learning_rate", "value_init", "whiten_advantages",
        "whiten_rewards", "normalize_rewards", "reward_clip", "missing_eos_penalty",
    ),
}  # fmt: skip
"""The settings that decide what a method learns, which tuning has to consider."""
MODELS: Mapping[Method, Sequence[str]] = {"dpo": ("policy",), "ppo": ("reward model", "policy", "value function")}
"""What a method trains."""

_SCALE: Mapping[str, tuple[Unit, float]] = {
    "s": ("seconds", 1), "sec": ("seconds", 1), "seconds": ("seconds", 1),
    "m": ("seconds", 60), "min": ("seconds", 60), "minutes": ("seconds", 60),
    "h": ("seconds", 3600), "hours": ("seconds", 3600),
    "tokens": ("tokens", 1), "pairs": ("pairs", 1),
}  # fmt: skip
_AMOUNT = re.compile(r"(\d[\d_,]*(?:\.\d+)?(?:e\d+)?)\s*([a-z]+)")


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that one trial may use, the same for both methods; a reward model counts in each trial of PPO."""

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
        """For people."""
        return amount_in_words(self.unit, self.amount)

    def half(self) -> Budget:
        """The most that a reward model may use of it."""
        return replace(self, amount=max(1.0, self.amount / 2))

    def less(self, used: float) -> Budget:
        """What is left; nothing or less, where it is used up."""
        return replace(self, amount=self.amount - used)


def amount_in_words(unit: Unit, amount: float) -> str:
    """An amount for people."""
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
    """From 1 on, of the method's settings."""
    settings: Mapping[str, str]
    seed: int
    label: str
    """What is tried in it, for people."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.number}-seed{self.seed}"


def parse_settings(words: Sequence[str], flag: str) -> Settings:
    """`name=value` words, one value each. Raises: RequestError."""
    settings = {}
    for name, values in parse_grid(words, flag).items():
        if len(values) > 1:
            raise RequestError(
                f"{flag} {name}={','.join(values)}: these are for all trials, so give one value. Several values are "
                "tried where they follow --dpo or --ppo."
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
            raise RequestError(f"{flag}: {name} is there twice. Give its values once, with commas between them.")
        grid[name] = [value for value in values.split(",") if value]
        if len(set(grid[name])) < len(grid[name]):
            raise RequestError(f"{flag} {word}: a value is there twice, and would be tried twice. Give different ones.")
    return grid


def check_names(grid: Mapping[str, object], known: Sequence[str], flag: str, *, ours: Sequence[str]) -> None:
    """Raises: RequestError for an unknown field, or one that the comparison sets itself."""
    for name in grid:
        if name in ours:
            raise RequestError(f"{flag} {name}=...: the comparison sets {name} itself. Leave it out.")
        if name not in known:
            hint = did_you_mean(name, known, otherwise="See preftune dpo, reward or ppo --help-all.")
            raise RequestError(f"{flag} {name}=...: there is no such setting. {hint}")


def tried(grids: Mapping[Method, Mapping[str, Sequence[str]]]) -> dict[Method, list[Settings]]:
    """All combinations of each method's values; where a method's own strength is not among them, its usual values.

    Raises: RequestError unless both have the same number.
    """
    found: dict[Method, list[Settings]] = {}
    for method in METHODS:
        grid = {**USUAL[method], **grids.get(method, {})}
        rows = itertools.product(*grid.values())
        found[method] = [dict(zip(grid, values, strict=True)) for values in rows]
    counts = {method: len(rows) for method, rows in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {SHORT[method]}" for method, count in counts.items())
        raise RequestError(
            f"{told}: each method gets the same number of trials, or the one that tries more wins by trying. Give as "
            f"many values in --dpo as in --ppo (usual: --dpo beta={','.join(USUAL['dpo']['beta'])} --ppo "
            f"kl_coef={','.join(USUAL['ppo']['kl_coef'])})."
        )
    return found


def labels(trials: Sequence[Settings], method: Method) -> list[str]:
    """What tells a method's trials apart; of a single trial its strength."""
    differ = [name for name in trials[0] if len({settings[name] for settings in trials}) > 1]
    shown = differ or list(USUAL[method])
    return [", ".join(f"{name} {settings[name]}" for name in shown) for settings in trials]
