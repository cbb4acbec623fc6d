"""Preference pairs of a table, read row by row."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.apply import LeftOut
from preftune.data.formats.columns import Columns
from preftune.data.pairs.row_reader import Attempt, RowReader
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from datasets import Dataset


_BATCH = 1000


class PairDataset(Sequence[PreferencePair]):
    """Rows in canonical form, converted when they are read; the raw `datasets.Dataset` stays memory-mapped.

    `pairs[i]` and iteration raise `DatasetError` for a row that is no preference. `PreferencePair.row` counts in the
    dataset that was opened, also after `select`.
    """

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
        left: Mapping[str, LeftOut] | None = None,
        unused: Sequence[str] = (),
    ) -> None:
        self.rows = rows
        """The rows that hold a pair each, with every column: the raw ones, or those that a format's adapter made."""
        self.raw = rows if raw is None else raw
        """The raw rows, all of them: `pairs.raw[pair.row]` is what a pair was made of."""
        self.format = format
        """The format that was named or recognised; None where the columns were named."""
        self.columns = columns
        self.name = name
        self.notes = tuple(notes)
        """What was assumed about the data, in plain sentences."""
        self.left = dict(left or {})
        """What of the raw rows gave no pair: reason (a key of `adapters.LEFT`) -> count and first rows."""
        self.unused = tuple(unused)
        """Raw columns that carry text and that nothing reads."""
        self.reader = RowReader(columns, name, chat or "system" in columns, numbers, scores, scale)
        self.needed = rows.with_format(None).select_columns(self.reader.needed)
        """The rows, with the columns that pairs are made of."""

    def __len__(self) -> int:
        return len(self.needed)

    def __repr__(self) -> str:
        return f"PairDataset({self.name!r}, {len(self)} pairs)"

    @overload
    def __getitem__(self, index: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, index: slice) -> PairDataset: ...
    def __getitem__(self, index: int | slice) -> PreferencePair | PairDataset:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index %= len(self)
        return self.reader.pair(self.needed[index], index)

    def __iter__(self) -> Iterator[PreferencePair]:
        for batch in self.batches(_BATCH):
            yield from batch

    def batches(self, size: int) -> Iterator[list[PreferencePair]]:
        """The pairs in order, at most `size` at a time."""
        start = 0
        for table in self.needed.iter(batch_size=size):
            batch = self.reader.pairs(table, start)
            yield batch
            start += len(batch)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> PairDataset:
        """The pairs at these positions, in this order."""
        numbers = np.arange(len(self)) if self.reader.numbers is None else self.reader.numbers
        kept = np.asarray(indices, dtype=np.int64)
        return self._with(self.rows.select(kept), numbers[kept], self.reader.chat)

    def as_chat(self) -> PairDataset:
        """The same pairs as conversations: a text prompt becomes the user's turn, text answers the assistant's."""
        return self._with(self.rows, self.reader.numbers, True)

    def _with(self, rows: Dataset, numbers: NDArray[np.int64] | None, chat: bool) -> PairDataset:
        return PairDataset(
            rows,
            self.columns,
            name=self.name,
            numbers=numbers,
            notes=self.notes,
            chat=chat,
            raw=self.raw,
            format=self.format,
            scores=self.reader.scores,
            scale=self.reader.scale,
            left=self.left,
            unused=self.unused,
        )

    def strengths(self) -> NDArray[np.float64] | None:
        """How much better each chosen side is, in the dataset's own units (points, ranks, ln of a ratio of votes).

        NaN where a row does not say, below 0 where the ratings contradict the label; None where no row says it.
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

    def check(self) -> None:
        """Reads every row.

        Raises:
            DatasetError: for the first row that is no preference.
        """
        for _ in self:
            pass

    def attempts(self) -> Iterator[Attempt]:
        """Every row with its pair or with what is wrong with it, and its strength."""
        columns = list(dict.fromkeys((*self.reader.needed, *self.reader.scores)))
        start = 0
        for table in self.rows.with_format(None).select_columns(columns).iter(batch_size=_BATCH):
            yield from self.reader.attempts(table, start)
            start += len(next(iter(table.values())))
