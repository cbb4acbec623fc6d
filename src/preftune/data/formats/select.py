"""Rows of any known format -> rows and columns of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.data.formats.adapter import Adapter, Sample
from preftune.data.formats.apply import CARRIED, RATINGS, RowCount, convert, sample_of
from preftune.data.formats.registry import adapter_named, recognise
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset


_SIDES = frozenset({"prompt", "chosen", "rejected"})
_PLAIN = "trl"
"""The format that is also preftune's own, and is not mentioned in notes."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """Rows with one pair each."""

    rows: Any
    """A `Dataset`: the raw rows, or canonical rows made from them."""
    columns: Mapping[str, str | None]
    """Canonical name -> column, if they differ."""
    format: str | None
    """The format's name; None if the columns were named, or no format was recognised."""
    numbers: NDArray[np.int64] | None = None
    """The raw row of each row, if they differ."""
    scores: tuple[str, ...] = ()
    """The columns of strength: one column, or the ratings of chosen and rejected."""
    ratings: tuple[str, ...] = ()
    """The columns of the ratings of chosen and rejected."""
    notes: tuple[str, ...] = ()
    left: Mapping[str, RowCount] = field(default_factory=dict)
    """The rows that gave no pair, by reason (a key of `LEFT`)."""
    used: frozenset[str] | None = None
    """The raw columns that the rows were made from; None if the columns are named."""


def shape(rows: Dataset, *, format: str | None, columns: Mapping[str, str | None] | None, name: str) -> Shaped:
    """Finds the format of raw rows and brings them into canonical form.

    Args:
        format: a key of `FORMATS`; None to recognise it. Data whose prompt or sides are named in `columns` are not
            converted.
        columns: canonical name -> column; overrides the format's.
        name: of the dataset, for messages.
    Raises:
        DatasetError: an unknown format, several that fit, or one that gives no pair.
    """
    asked = dict(columns or {})
    if format is not None:
        adapter: Adapter | None = adapter_named(format)
    else:
        adapter = None if _SIDES & set(asked) else recognise(sample_of(rows), name=name)
    if adapter is None:
        return Shaped(rows, asked, None)
    sample = sample_of(rows)
    if format is None and adapter.check is not None:
        adapter.check(rows, sample)
    named = adapter.columns(sample) if adapter.columns is not None else None
    note = f"The rows are read as {adapter.name} ({adapter.holds}); --format (format=) names another format."
    notes_of_shape = (note,) if format is None and adapter.name != _PLAIN else ()
    if named is not None:
        scores, ratings = (
            (find(sample) or ()) if find is not None else () for find in (adapter.scores, adapter.ratings)
        )
        return Shaped(rows, {**named, **asked}, adapter.name, None, scores, ratings, notes_of_shape)
    if adapter.rows is None and adapter.table is None:
        raise _no_pair(adapter, sample, [], name)
    made = convert(rows, adapter, name=name)
    if len(made.rows) == 0:
        raise _no_pair(adapter, sample, made.lines(), name)
    if notes_of_shape:
        notes_of_shape = (f"{note} {counted(len(rows), 'row gives', 'rows give')} {counted(len(made.rows), 'pair')}.",)
    used = frozenset((*(adapter.uses(sample) if adapter.uses is not None else sample.columns), *CARRIED))
    notes = (*notes_of_shape, *made.lines())
    return Shaped(made.rows, asked, adapter.name, made.numbers, ("strength",), RATINGS, notes, made.left, used)


def _no_pair(adapter: Adapter, sample: Sample, lines: list[str], name: str) -> DatasetError:
    hint = adapter.hint(sample).strip() if adapter.hint is not None else ""
    reasons = " ".join(part for part in (hint, adapter.refused, *lines) if part)
    return DatasetError(f"{name} gives no preference pair, read as {adapter.name} ({adapter.holds}). {reasons}")
