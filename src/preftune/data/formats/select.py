"""Rows of any known format -> rows and columns of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preftune.data.formats.adapter import Adapter, Sample
from preftune.data.formats.apply import CARRIED, RATINGS, RowCount, convert, sample_of
from preftune.data.formats.registry import adapter_named, recognise
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset


_SIDES = frozenset({"prompt", "chosen", "rejected"})
_PLAIN = "trl"
"""The format that is preftune's own too, and needs no mention."""


@dataclass(frozen=True, slots=True)
class Shaped:
    """Rows that hold a pair each."""

    rows: Any
    """A `Dataset`: the raw rows, or canonical ones that were made of them."""
    columns: Mapping[str, str | None]
    """Canonical name -> column, where they differ."""
    format: str | None
    """Its name; None where the columns were named, or nothing was recognised."""
    numbers: NDArray[np.int64] | None = None
    """The raw row of each row, where they differ."""
    scores: tuple[str, ...] = ()
    """The columns of strength: its own, or the ratings of chosen and rejected."""
    ratings: tuple[str, ...] = ()
    """The columns of the ratings of chosen and rejected."""
    notes: tuple[str, ...] = ()
    left: Mapping[str, RowCount] = field(default_factory=dict)
    """What gave no pair, by its reason (a key of `LEFT`)."""
    used: frozenset[str] | None = None
    """The raw columns that the rows were made of; None where the columns are named."""


def shape(rows: Dataset, *, format: str | None, columns: Mapping[str, str | None] | None, name: str) -> Shaped:
    """Finds the format of raw rows and brings them into its canonical form.

    Args:
        format: a key of `FORMATS`; None to recognise it. Data whose prompt or sides are named in `columns` are taken as
            they are.
        columns: canonical name -> column, which wins over the format's.
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
    told = (note,) if format is None and adapter.name != _PLAIN else ()
    if named is not None:
        scores, ratings = (
            (find(sample) or ()) if find is not None else () for find in (adapter.scores, adapter.ratings)
        )
        return Shaped(rows, {**named, **asked}, adapter.name, None, scores, ratings, told)
    if adapter.rows is None and adapter.table is None:
        raise _no_pair(adapter, sample, [], name)
    made = convert(rows, adapter, name=name)
    if len(made.rows) == 0:
        raise _no_pair(adapter, sample, made.lines(), name)
    if told:
        told = (f"{note} {len(rows):,} rows give {len(made.rows):,} pairs.",)
    used = frozenset((*(adapter.uses(sample) if adapter.uses is not None else sample.columns), *CARRIED))
    notes = (*told, *made.lines())
    return Shaped(made.rows, asked, adapter.name, made.numbers, ("strength",), RATINGS, notes, made.left, used)


def _no_pair(adapter: Adapter, sample: Sample, lines: list[str], name: str) -> DatasetError:
    hint = adapter.hint(sample).strip() if adapter.hint is not None else ""
    reasons = " ".join(part for part in (hint, adapter.refused, *lines) if part)
    return DatasetError(f"{name} gives no preference pair, read as {adapter.name} ({adapter.holds}). {reasons}")
