"""Raw rows -> pairs, with columns that were resolved once per dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from preftune.data.chat.messages import Where
from preftune.data.formats.adapter import number as as_number
from preftune.data.formats.apply import GOLD
from preftune.data.formats.columns import Columns
from preftune.data.formats.to_pair import gold_of, to_pair
from preftune.errors import DatasetError
from preftune.types import PreferencePair


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row, with its pair or its problem."""

    row: int
    """Its number in the dataset that was opened."""
    pair: PreferencePair | None
    problem: str = ""
    """Message that names dataset, row and column; empty if there is a pair."""
    strength: float | None = None
    """How much better the chosen side is, in the dataset's own units."""
    ratings: tuple[float, float] | None = None
    """The ratings of chosen and rejected, if the row has both."""
    gold: Any = None
    """What the row has in the column of gold answers, as it is: text or messages."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes pairs from raw rows; small enough to be sent to other processes."""

    columns: Columns
    name: str
    chat: bool
    scores: tuple[str, ...] = ()
    """The columns of strength: one column, or the ratings of chosen and rejected."""
    scale: float | None = None
    """Nats of margin per unit of strength; None if strength does not become a margin."""
    ratings: tuple[str, ...] = ()
    """The columns of the ratings of chosen and rejected."""
    rated: bool = False
    """Whether pairs are read with their ratings."""
    golden: bool = False
    """Whether pairs are read with their gold answers, from the column `GOLD`."""

    def read(self, row: Mapping[str, Any], number: int) -> PreferencePair:
        """The pair of a row. Raises: DatasetError for a row without a pair."""
        values = self.columns.pick(row)
        if self.scale is not None:
            values["margin"] = self.scale * max(0.0, self.strength(row) or 0.0)
        pair = to_pair(values, name=self.name, row=number, chat=self.chat, prompts="prompt" in self.columns)
        if self.golden:
            pair = replace(pair, gold=gold_of(row.get(GOLD), pair, Where(self.name, number)))
        return replace(pair, ratings=self.both_ratings(row)) if self.rated else pair

    def both_ratings(self, row: Mapping[str, Any]) -> tuple[float, float] | None:
        """The ratings of chosen and rejected; None if the row has none, or if they contradict its label."""
        values = [as_number(row.get(column)) for column in self.ratings]
        if not values or None in values:
            return None
        chosen, rejected = (value for value in values if value is not None)
        return (chosen, rejected) if chosen > rejected else None

    def strength(self, row: Mapping[str, Any]) -> float | None:
        """How much better the chosen side is, in the dataset's own units; None if the row does not say."""
        values = [as_number(row.get(column)) for column in self.scores]
        if not values or None in values:
            return None
        chosen, *rejected = (value for value in values if value is not None)
        return chosen - sum(rejected)

    @property
    def needed(self) -> list[str]:
        """The columns that must be read."""
        scores = self.scores if self.scale is not None else ()
        more = (*scores, *(self.ratings if self.rated else ()), *((GOLD,) if self.golden else ()))
        return list(dict.fromkeys((*self.columns.needed, *more)))

    @property
    def facts(self) -> tuple[Any, ...]:
        """The settings that a pair depends on, besides its row."""
        rated = (*((self.ratings,) if self.rated else ()), *((GOLD,) if self.golden else ()))
        return ("pair", sorted(self.columns.paths.items()), self.chat, self.scores, self.scale, *rated)

    def as_chat(self) -> RowReader:
        """The same reader, with texts as turns."""
        return replace(self, chat=True)

    def attempt(self, row: Mapping[str, Any], number: int) -> Attempt:
        """The pair of one row, or its problem."""
        try:
            ratings = self.both_ratings(row)
            pair, strength = self.read(row, number), self.strength(row)
            gold = row.get(GOLD)
            gold = gold if isinstance(gold, str | list | Mapping) else None
            return Attempt(number, pair, strength=strength, ratings=ratings, gold=gold)
        except DatasetError as error:
            return Attempt(number, None, str(error))
