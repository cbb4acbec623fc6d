"""The datasets that another tool's recipe names, with the columns that it reads of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preftune.cli.recipes.carried import Carried

_OF_PAIRS = frozenset(("prompt", "chosen", "rejected", "system", "tools"))
_OF_ANSWERS = frozenset(("messages", "prompt", "completion", "text", "system", "history", "label", "tools"))
READ = {"dpo": _OF_PAIRS, "reward": _OF_PAIRS, "sft": _OF_ANSWERS, "kto": _OF_ANSWERS, "ppo": frozenset(("prompt",))}
"""Command -> the canonical columns that a recipe of another tool can name."""


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset."""

    path: str
    name: str | None = None
    """Configuration of a hub dataset."""
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> column, where they differ."""

    @property
    def renames(self) -> list[str]:
        """The words of `columns` in a recipe."""
        return [f"{canonical}={column}" for canonical, column in self.columns.items()]

    @property
    def reading(self) -> tuple[Any, ...]:
        """How the rows are read, apart from where they are."""
        return self.name, self.split, tuple(self.columns.items())

    def entry(self) -> dict[str, Any]:
        """The entry of `datasets` in a recipe of preftune."""
        given = {"path": self.path, "name": self.name, "split": self.split, "columns": dict(self.columns)}
        return {key: value for key, value in given.items() if value}


def named_columns(carried: Carried, given: Mapping[str, str], where: str) -> dict[str, str]:
    """The columns that the command reads; those that it does not read are recorded as lost.

    Args:
        given: canonical name -> column.
        where: the key and the dataset, for messages.
    """
    read = READ[carried.command]
    for canonical in [canonical for canonical in given if canonical not in read]:
        carried.lost[f"{where}: {canonical}={given[canonical]}"] = (
            f"preftune {carried.command} reads no column of this kind ({', '.join(sorted(read))})."
        )
    return {canonical: column for canonical, column in given.items() if canonical in read and canonical != column}


def joined(carried: Carried, parts: Sequence[str], where: str) -> str:
    """The columns of one text as preftune names them; that it joins them with a blank line is recorded."""
    if len(parts) > 1:
        carried.lost[f"{where}: how {' and '.join(parts)} are joined"] = "A blank line is between them."
    return "+".join(parts)


def train_on(carried: Carried, sources: Sequence[Source]) -> None:
    """Carries over the training data: as names where all are read alike, otherwise as entries of `datasets`."""
    if not sources:
        return
    first = sources[0]
    if any(source.reading != first.reading for source in sources):
        carried.settings["datasets"] = [source.entry() for source in sources]
        return
    alike = {"dataset_config": first.name, "dataset_train_split": first.split, "columns": first.renames}
    carried.settings["dataset_name"] = [source.path for source in sources]
    carried.settings |= {key: value for key, value in alike.items() if value}


def evaluate_on(carried: Carried, sources: Sequence[Source], key: str) -> None:
    """Carries over the data to evaluate on, which are read with the columns of the training data."""
    if not sources:
        return
    first = sources[0]
    carried.held_out([source.path for source in sources], key)
    if first.split:
        carried.settings["dataset_test_split"] = first.split
    if first.name:
        carried.lost[f"{key}: name {first.name}"] = (
            "The data to evaluate on have no configuration: convert them to a file first."
        )
    if first.renames != carried.settings.get("columns", []):
        carried.lost[f"{key}: columns {', '.join(first.renames) or 'as they are called'}"] = (
            "The data to evaluate on are read with the columns of the training data. Rename them in the file: with "
            "wrong columns the evaluation is wrong."
        )
