"""Data for an audit. Rows that training would refuse are reported one by one, and the others are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.adapter import Adapter
from preftune.data.formats.apply import CARRIED, RowCount, convert, sample_of
from preftune.data.formats.columns import resolve_columns
from preftune.data.formats.registry import adapter_named, recognise
from preftune.data.pairs.blocks import BLOCK, Here, Rows, blocks_here
from preftune.data.pairs.checks import unused_texts
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.open import read_pairs
from preftune.data.reading.load import Source, display_name, load_rows
from preftune.errors import DatasetError
from preftune.types import PreferencePair

_SIDES = frozenset({"prompt", "chosen", "rejected"})


class Fault(NamedTuple):
    """A row that is not a preference."""

    row: int
    reason: str
    """The reason, with column and value."""


@dataclass(slots=True)
class Opened:
    """Data to be audited."""

    name: str
    rows: int
    """Number of raw rows."""
    pairs: PairDataset | None
    """None if no row gives a pair."""
    format: str | None = None
    holds: str = ""
    """A short description of the format's content."""
    left: Mapping[str, RowCount] = field(default_factory=dict)
    """Reason (a key of `formats.adapter.LEFT`) -> the rows without a pair."""
    refused: str | None = None
    """The error with which `preftune dpo` would refuse the data; None if it would accept them."""
    notes: tuple[str, ...] = ()

    def batches(self) -> Iterator[tuple[list[tuple[int, PreferencePair]], list[Fault]]]:
        """Batches of the pairs in order, with their positions, and of the rows that are not a preference."""
        if self.pairs is None:
            return
        first = 0
        for block in blocks_here(self.pairs.attempts()):
            yield sorted_out(block, first, name=self.name)
            first += len(block.read)

    def at(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[tuple[int, PreferencePair]]:
        """The pairs at these positions, read again. They must have been readable in `batches`."""
        assert self.pairs is not None
        for start in range(0, len(indices), BLOCK):
            part = indices[start : start + BLOCK]
            yield from zip((int(index) for index in part), self.pairs.select(part), strict=True)

    def row_of(self, index: int) -> int:
        """The number of the raw row at a position."""
        assert self.pairs is not None
        return self.pairs.number(index)


def sorted_out(block: Rows | Here, first: int, *, name: str) -> tuple[list[tuple[int, PreferencePair]], list[Fault]]:
    """The pairs of a block with their positions, and the rows that are not a preference.

    Args:
        first: the position of the first row.
        name: of the data.
    """
    good: list[tuple[int, PreferencePair]] = []
    faults: list[Fault] = []
    for index, attempt in enumerate(block.attempts(), start=first):
        if attempt.pair is not None:
            good.append((index, attempt.pair))
        else:
            faults.append(Fault(attempt.row, attempt.problem.removeprefix(f"{name} row {attempt.row}, ")))
    return good, faults


def open_data(
    source: Source,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    name: str | None = None,
) -> Opened:
    """Open preference data for an audit. The arguments are those of `read_pairs`.

    Raises:
        DatasetError: there are no rows, columns or format cannot be recognised, or the format holds no preferences.
    """
    name = name or display_name(source)
    rows = load_rows(source, split=split)
    adapter = _adapter(rows, format=format, columns=columns, name=name)
    known, holds = (adapter.name, adapter.holds) if adapter is not None else (None, "")
    named = adapter is not None and adapter.columns is not None and adapter.columns(sample_of(rows)) is not None
    if adapter is None or named:
        pairs, refused = _as_they_are(rows, adapter, columns=columns, format=format, name=name)
        return Opened(name, len(rows), pairs, known, holds, refused=refused, notes=pairs.notes)
    if adapter.rows is None and adapter.table is None:
        read_pairs(rows, split="all", columns=columns, format=format, name=name)  # raises its usual error
    if format is None and adapter.check is not None:
        adapter.check(rows, sample_of(rows))
    made = convert(rows, adapter, name=name)
    if not len(made.rows):
        refused = f"{name} gives no preference pair, read as {adapter.name} ({adapter.holds}). {adapter.refused}"
        return Opened(name, len(rows), None, known, holds, made.left, refused.strip())
    resolved = resolve_columns(made.rows.features, columns, name=name)
    pairs = PairDataset(
        made.rows,
        resolved,
        name=name,
        numbers=made.numbers,
        raw=rows,
        format=adapter.name,
        scores=("strength",),
        unused=unused_texts(sample_of(rows), (*(adapter.uses(sample_of(rows)) if adapter.uses else ()), *CARRIED)),
    )
    return Opened(name, len(rows), pairs, known, holds, made.left)


def _adapter(rows: Any, *, format: str | None, columns: Mapping[str, str | None] | None, name: str) -> Adapter | None:
    if not len(rows):
        raise DatasetError(f"{name} has no rows. Give at least one.")
    if format is not None:
        return adapter_named(format)
    return None if _SIDES & set(columns or {}) else recognise(sample_of(rows), name=name)


def _as_they_are(
    rows: Any,
    adapter: Adapter | None,
    *,
    columns: Mapping[str, str | None] | None,
    format: str | None,
    name: str,
) -> tuple[PairDataset, str | None]:
    """Rows that hold a pair each, opened as for training; if that fails at a row, opened without this check.

    Returns: the pairs, and the error of training or None.
    Raises: DatasetError if the columns cannot be resolved.
    """
    try:
        return read_pairs(rows, split="all", columns=columns, format=format, name=name), None
    except DatasetError as error:
        sample = sample_of(rows)
        found = adapter.columns(sample) if adapter is not None and adapter.columns is not None else None
        try:
            resolved = resolve_columns(rows.features, {**(found or {}), **(columns or {})}, name=name, rows=rows)
        except DatasetError:
            raise error from None
        scores = adapter.scores(sample) if adapter is not None and adapter.scores is not None else None
        name_of_format = adapter.name if adapter is not None else None
        pairs = PairDataset(rows, resolved, name=name, format=name_of_format, scores=scores or ())
        return pairs, str(error)
