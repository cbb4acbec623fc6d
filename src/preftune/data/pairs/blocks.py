"""Blocks of rows, which are read in this process or sent to the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.row_reader import Attempt, RowReader
from preftune.data.row_dataset import rows_of

BLOCK = 1000


class Rows(NamedTuple):
    """Rows of a dataset as they are sent to a worker."""

    reader: RowReader
    table: Any
    """Of Arrow, with the columns that pairs are made from."""
    features: Any
    """Of `datasets`, which decode the table."""
    numbers: Sequence[int]
    raw: Mapping[int, Mapping[str, Any]] | None
    """The rows with all their columns by number, where conditions need them."""

    def attempts(self) -> Iterator[Attempt]:
        columns = self.features.decode_batch(self.table.to_pydict())
        for number, row in zip(self.numbers, rows_of(columns), strict=True):
            yield self.reader.attempt(row, number)


class Here(NamedTuple):
    """Rows that are read in this process."""

    read: Sequence[Attempt]

    def attempts(self) -> Iterator[Attempt]:
        yield from self.read


def blocks_here(attempts: Iterator[Attempt]) -> Iterator[Here]:
    """The attempts of a dataset in blocks."""
    while read := list(islice(attempts, BLOCK)):
        yield Here(read)


def blocks_to_send(pairs: PairDataset, *, with_raw: bool = False) -> Iterator[Rows]:
    """The rows of a dataset in blocks, as Arrow tables.

    Args:
        with_raw: with all columns.
    """
    rows = pairs.rows.select_columns(pairs.columns_of_attempts())
    raw = pairs.raw.with_format(None) if with_raw else None
    start = 0
    for table in rows.with_format("arrow").iter(batch_size=BLOCK):
        numbers = [pairs.number(start + place) for place in range(len(table))]
        start += len(table)
        whole = None if raw is None else {number: raw[number] for number in numbers}
        yield Rows(pairs.reader, table, rows.features, numbers, whole)
