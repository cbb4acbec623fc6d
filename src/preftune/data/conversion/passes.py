"""The two passes over the rows: what is known of each pair, and the lines of those that stay. Both work on blocks, in
this process or on the workers of a cluster."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preftune.data.conversion.filters import Facts, Filters, is_blank
from preftune.data.conversion.use_case import UseCase
from preftune.data.conversion.write import Part, Shape, part_of
from preftune.data.pairs.blocks import Here, Rows
from preftune.data.pairs.canonical_row import canonical_row, reads_back, with_json_texts
from preftune.data.pairs.row_reader import Attempt
from preftune.errors import DatasetError
from preftune.types import PreferencePair

EXAMPLES = 5


@dataclass(slots=True)
class Seen:
    """The result of the first pass over some rows."""

    facts: Facts
    shape: Shape = field(default_factory=Shape)
    problems: list[str] = field(default_factory=list)
    """Of the first rows without a pair."""
    rows: array[int] = field(default_factory=lambda: array("q"))
    """The row number of each position."""
    topics: Counter[str] = field(default_factory=Counter)

    def extend(self, other: Seen) -> None:
        """Adds the rows that follow."""
        self.facts.extend(other.facts)
        self.shape.widen(other.shape)
        self.problems = [*self.problems, *other.problems][:EXAMPLES]
        self.rows.extend(other.rows)
        self.topics.update(other.topics)


class Kept(NamedTuple):
    """Which rows of a block are written, and how."""

    sound: NDArray[np.bool_]
    """Which had a pair in the first pass."""
    kept: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    shape: Shape
    parquet: bool


def look(block: Rows | Here, leaves: Callable[[PreferencePair], str | None], *, near: bool, parquet: bool) -> Seen:
    """The first pass over a block.

    Args:
        leaves: why a pair is left out; None for one that stays.
        near: also make signatures of texts.
    """
    seen = Seen(Facts(near=near))
    for attempt in block.attempts():
        seen.rows.append(attempt.row)
        if attempt.pair is None:
            seen.facts.add_none("no_preference")
            if len(seen.problems) < EXAMPLES:
                seen.problems.append(attempt.problem)
            continue
        row = canonical_row(attempt.pair, attempt.strength, attempt.ratings, attempt.gold)
        reason = _fault(attempt.pair, row, parquet=parquet) or leaves(attempt.pair)
        seen.facts.add(attempt.pair, attempt.strength, reason)
        if reason is None:
            seen.shape.add(row)
    return seen


def written(block: Rows | Here, kept: Kept) -> tuple[Part, Part]:
    """The second pass over a block: the pairs that stay, and those that are held out.

    Raises: DatasetError if the rows are not those of the first pass.
    """
    sides: tuple[list[Attempt], list[Attempt]] = ([], [])
    attempts = list(block.attempts())
    if len(attempts) != len(kept.sound) or any(
        sound and attempt.pair is None for attempt, sound in zip(attempts, kept.sound, strict=True)
    ):
        raise DatasetError(
            "The dataset changed while it was being converted. Run the conversion again when nothing is writing to it."
        )
    for attempt, stays, held in zip(attempts, kept.kept, kept.held_out, strict=True):
        if stays:
            sides[int(held)].append(attempt)
    main, held_out = (part_of(side, kept.shape, parquet=kept.parquet) for side in sides)
    return main, held_out


def working(filters: Filters, names: Sequence[str], parquet: bool) -> Callable[[Any], Any]:
    """What a worker does: the first pass over (dataset, rows, None), the second over (dataset, rows, what is kept).

    Args:
        names: of the datasets.
    """
    use_case = use_case_of(filters)

    def work(block: tuple[int, Rows, Kept | None]) -> Any:
        dataset, rows, kept = block
        if kept is not None:
            return written(rows, kept)
        use_case.seen.clear()
        raw: Any = _Raw(rows.raw or {})
        leaves = use_case.of(raw, names[dataset])
        seen = look(rows, leaves, near=filters.dedupe == "near", parquet=parquet)
        seen.topics = Counter(use_case.seen)
        return seen

    return work


def use_case_of(filters: Filters) -> UseCase:
    return UseCase(filters.topics, filters.keywords, filters.languages, filters.rule)


class _Raw:
    """The rows of a block with all their columns, as `UseCase.of` reads them from a dataset."""

    def __init__(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        self._rows = rows
        self.column_names = list(next(iter(rows.values()), {}))

    @property
    def raw(self) -> _Raw:
        return self

    def with_format(self, format: None) -> _Raw:
        return self

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self._rows[row]


def _fault(pair: PreferencePair, row: Mapping[str, Any], *, parquet: bool) -> str | None:
    """Why a pair states no preference, or cannot be written; None if it can be kept."""
    if is_blank(pair.chosen) or is_blank(pair.rejected):
        return "empty"
    if pair.chosen == pair.rejected:
        return "identical"
    if pair.prompt == []:
        return "no_shared_prompt"
    sound = reads_back(row, pair) and (not parquet or reads_back(with_json_texts(row), pair))
    return None if sound else "unlike_itself"
