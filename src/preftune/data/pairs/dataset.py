"""Preference pairs of a table, read row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.apply import GOLD, RowCount
from preftune.data.formats.columns import Columns
from preftune.data.pairs.checks import not_used
from preftune.data.pairs.row_reader import Attempt, RowReader
from preftune.data.row_dataset import RowDataset
from preftune.errors import DatasetError
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from datasets import Dataset


class PairDataset(RowDataset[PreferencePair]):
    """Rows in canonical form: the raw rows, or those that a format's adapter made."""

    kind = "pair"
    reader: RowReader

    def __init__(
        self,
        rows: Dataset,
        columns: Columns,
        *,
        name: str = "the dataset",
        numbers: NDArray[np.int64] | None = None,
        notes: Sequence[str] = (),
        chat: bool = False,
        raw: Dataset | None = None,
        format: str | None = None,
        scores: tuple[str, ...] = (),
        scale: float | None = None,
        ratings: tuple[str, ...] = (),
        left: Mapping[str, RowCount] | None = None,
        unused: Sequence[str] = (),
    ) -> None:
        reader = RowReader(columns, name, chat or "system" in columns, scores, scale, ratings)
        super().__init__(rows, reader, name=name, numbers=numbers, notes=notes, left=left, format=format)
        self.raw = rows if raw is None else raw
        """All raw rows: a pair was made from `pairs.raw[pair.row]`."""
        self.unused = tuple(unused)
        """Raw columns with text that are not used."""

    def strengths(self) -> NDArray[np.float64] | None:
        """How much better each chosen side is, in the dataset's own units (points, ranks, ln of a ratio of votes).

        NaN for a row without a strength, below 0 if the ratings contradict the label; None if no row has a strength.
        """
        columns = list(self.reader.scores)
        if not columns:
            return None
        found = []
        for table in self.rows.with_format(None).select_columns(columns).iter(batch_size=10_000):
            for values in zip(*(table[column] for column in columns), strict=True):
                strength = self.reader.strength(dict(zip(columns, values, strict=True)))
                found.append(np.nan if strength is None else strength)
        strengths = np.asarray(found, dtype=np.float64)
        return None if np.isnan(strengths).all() else strengths

    def rated(self) -> PairDataset:
        """The same pairs, with their ratings if the rows have them."""
        return self._with(self.rows, replace(self.reader, rated=True), self.numbers)

    def with_gold(self) -> PairDataset:
        """The same pairs, with the gold answers of a third column.

        Raises: DatasetError without such a column.
        """
        if GOLD not in self.rows.column_names:
            raise DatasetError(
                f"{self.name} has no column {GOLD!r}, the third answer that TPO imitates. Add it to every row, or set "
                "tpo_alpha=0 to train on the pairs alone."
            )
        changed = self._with(self.rows, replace(self.reader, golden=True), self.numbers)
        changed.unused = tuple(column for column in self.unused if column != GOLD)
        noted = not_used(self.unused)
        kept = tuple(note for note in self.notes if note not in noted)
        # a part of a dataset whose notes were shown has none, and gets none
        changed.notes = self.notes if len(kept) == len(self.notes) else (*kept, *not_used(changed.unused))
        return changed

    def attempts(self) -> Iterator[Attempt]:
        """Every row with its pair or its problem, and its strength."""
        for batch in self.row_batches(1000, self.columns_of_attempts()):
            for number, row in batch:
                yield self.reader.attempt(row, number)

    def columns_of_attempts(self) -> list[str]:
        """The columns that `attempts` reads."""
        gold = [GOLD] if GOLD in self.rows.column_names else []
        return list(dict.fromkeys((*self.reader.needed, *self.reader.scores, *self.reader.ratings, *gold)))
