"""Records of a table, each made when it is read: the common part of datasets of pairs and of demonstrations."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.apply import RowCount

if TYPE_CHECKING:
    from typing import Self

    from datasets import Dataset

_BATCH = 1000

T = TypeVar("T")
Record_co = TypeVar("Record_co", covariant=True)


class Reader(Protocol[Record_co]):
    """Makes records from rows; small enough to be sent to other processes."""

    @property
    def needed(self) -> Sequence[str]:
        """The columns that must be read."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """The settings that a record depends on, besides its row, as plain values."""

    def read(self, row: Mapping[str, Any], number: int) -> Record_co:
        """The record of a row. Raises: DatasetError for a row without a record, with its number in the source."""

    def as_chat(self) -> Self:
        """The same reader, with texts as turns."""


class RowDataset(Sequence[T]):
    """Rows as records; the raw `datasets.Dataset` stays memory-mapped.

    `data[i]` and iteration raise `DatasetError` for a row without a record. Row numbers in records count in the
    dataset that was opened, also after `select`.
    """

    kind: ClassVar[str]
    """Name of a record in messages."""
    rows: Dataset
    """The rows with one record each, with every column."""
    reader: Reader[T]
    numbers: NDArray[np.int64] | None
    """The row number of each position, if they differ (after `select`, or if rows make several records)."""
    needed: Dataset
    """The rows, with the columns that records are made from."""

    def __init__(
        self,
        rows: Dataset,
        reader: Reader[T],
        *,
        name: str = "the dataset",
        numbers: NDArray[np.int64] | None = None,
        notes: Sequence[str] = (),
        left: Mapping[str, RowCount] | None = None,
        format: str | None = None,
    ) -> None:
        self.name = name
        self.notes = tuple(notes)
        """Assumptions about the data, in sentences."""
        self.left = dict(left or {})
        """Why raw rows gave no record: reason -> count and first rows."""
        self.format = format
        """The format that was named or recognised; None if the columns were named."""
        self._set(rows, reader, numbers)

    def _set(self, rows: Dataset, reader: Reader[T], numbers: NDArray[np.int64] | None) -> None:
        self.rows, self.reader, self.numbers = rows, reader, numbers
        self.needed = rows.with_format(None).select_columns(list(reader.needed))

    def _with(self, rows: Dataset, reader: Reader[T], numbers: NDArray[np.int64] | None) -> Self:
        changed = copy.copy(self)
        changed._set(rows, reader, numbers)
        return changed

    def __len__(self) -> int:
        return len(self.needed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} {self.kind}s)"

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.kind} {index} of {len(self)}")
        index %= len(self)
        return self.reader.read(self.needed[index], self.number(index))

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches(_BATCH):
            yield from batch

    def batches(self, size: int) -> Iterator[list[T]]:
        """The records in order, at most `size` at a time."""
        for batch in self.row_batches(size):
            yield [self.reader.read(row, number) for number, row in batch]

    def row_batches(self, size: int, columns: Sequence[str] = ()) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Rows with their numbers, the columns that records are made from, and `columns`."""
        rows = self.rows.with_format(None).select_columns([*dict.fromkeys((*self.reader.needed, *columns))])
        start = 0
        for table in rows.iter(batch_size=size):
            batch = rows_of(table)
            yield [(self.number(start + place), row) for place, row in enumerate(batch)]
            start += len(batch)

    def number(self, index: int) -> int:
        """The number of a row in the dataset that was opened."""
        return index if self.numbers is None else int(self.numbers[index])

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """The records at these positions, in this order."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        kept = np.asarray(indices, dtype=np.int64)
        return self._with(self.rows.select(kept), self.reader, numbers[kept])

    def held_out(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """The records at these positions without what opening noted and counted: the other part of the data says it."""
        part = self.select(indices)
        part.notes, part.left = (), {}
        return part

    def as_chat(self) -> Self:
        """The same as conversations: a text prompt becomes the user's turn, a text answer the assistant's."""
        return self._with(self.rows, self.reader.as_chat(), self.numbers)

    @property
    def facts(self) -> tuple[Any, ...]:
        """The settings that records depend on besides `needed`, and the rows left out, as plain values."""
        numbers = None if self.numbers is None else np.ascontiguousarray(self.numbers).tobytes()
        return self.reader.facts, numbers, [(reason, out.count, out.rows) for reason, out in sorted(self.left.items())]


def rows_of(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch of columns."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
