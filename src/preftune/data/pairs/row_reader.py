"""Raw rows -> pairs, by columns that were resolved once per dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.adapter import number
from preftune.data.formats.columns import Columns
from preftune.data.formats.to_pair import to_pair
from preftune.errors import DatasetError
from preftune.types import PreferencePair


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row, and the pair that it holds or what is wrong with it."""

    row: int
    """Its number in the dataset that was opened."""
    pair: PreferencePair | None
    problem: str = ""
    """Names dataset, row and column; empty where there is a pair."""
    strength: float | None = None
    """How much better the chosen side is, in the dataset's own units."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes pairs of raw rows; small enough to be sent to other processes."""

    columns: Columns
    name: str
    chat: bool
    numbers: NDArray[np.int64] | None
    """The row number of each position, where they differ (after `select`, or where rows make several pairs)."""
    scores: tuple[str, ...] = ()
    """The columns of strength: one that holds it, or the ratings of chosen and rejected."""
    scale: float | None = None
    """Nats of margin per unit of strength; None where strength is no margin."""

    def pair(self, row: Mapping[str, Any], index: int) -> PreferencePair:
        at = index if self.numbers is None else int(self.numbers[index])
        values = self.columns.pick(row)
        if self.scale is not None:
            values["margin"] = self.scale * max(0.0, self.strength(row) or 0.0)
        return to_pair(values, name=self.name, row=at, chat=self.chat, prompts="prompt" in self.columns)

    def strength(self, row: Mapping[str, Any]) -> float | None:
        """How much better the chosen side is, in the dataset's own units; None where the row does not say."""
        values = [number(row.get(column)) for column in self.scores]
        if not values or None in values:
            return None
        chosen, *rejected = (value for value in values if value is not None)
        return chosen - sum(rejected)

    @property
    def needed(self) -> list[str]:
        """The columns that must be read."""
        return list(dict.fromkeys((*self.columns.needed, *(self.scores if self.scale is not None else ()))))

    def pairs(self, table: Mapping[str, Sequence[Any]], start: int) -> list[PreferencePair]:
        """The pairs of a batch of columns, whose first row has the position `start`."""
        count = len(next(iter(table.values())))
        return [self.pair({key: values[i] for key, values in table.items()}, start + i) for i in range(count)]

    def attempts(self, table: Mapping[str, Sequence[Any]], start: int) -> Iterator[Attempt]:
        """Like `pairs`, with what is wrong in place of a pair where a row holds none."""
        for place in range(len(next(iter(table.values())))):
            row = {key: values[place] for key, values in table.items()}
            yield self.attempt(row, start + place)

    def attempt(self, row: Mapping[str, Any], index: int) -> Attempt:
        """The pair of one row, or what is wrong with it."""
        at = index if self.numbers is None else int(self.numbers[index])
        try:
            return Attempt(at, self.pair(row, index), strength=self.strength(row))
        except DatasetError as error:
            return Attempt(at, None, str(error))
