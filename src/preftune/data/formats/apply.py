"""Raw rows of a format -> a dataset of canonical rows, each with its raw row's number, and a count of the rest.

If the raw rows are on disk, so are the canonical ones, in the cache of `datasets`: they are made once and found again.
The cache's key holds `TOKENS_VERSION`."""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.data.formats.adapter import LEFT, Adapter, Left, Made, Row, Sample, distinct_of, number
from preftune.data.formats.registry import FORMATS
from preftune.data.reading.arrow_tables import json_text
from preftune.data.tokens_version import TOKENS_VERSION

if TYPE_CHECKING:
    from datasets import Dataset, Features

_SAMPLE = 100
"""Number of rows by which a format is recognised."""

_BATCH = 500
_SHOW_PROGRESS = 2000
"""Minimum number of rows for a progress bar (on a terminal only)."""

_EXAMPLES = 5

RATINGS = ("score_chosen", "score_rejected")
"""The columns of canonical rows that hold the ratings of chosen and rejected."""

_NUMBERS = ("agreement", "strength", *RATINGS)
_MADE = ("prompt", "chosen", "rejected", *_NUMBERS, "id")
CARRIED = ("tools", "chat_template_kwargs", "system", "weight", "margin", "source", "agreement")
"""Columns of a raw row that are copied to each of its pairs, where the format does not make a value itself."""
GOLD = "reference"
"""The column of gold answers, as TRL's triple preferences call it. It holds for each pair too; few losses read it."""


@dataclass(slots=True)
class RowCount:
    """A count of rows, with the first few row numbers; a row that is counted several times is listed once."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < _EXAMPLES and row not in self.rows:
            self.rows.append(row)

    def __str__(self) -> str:
        """`3 rows (2, 5, 8)`, `1,200 rows (0, 1, 2, 3, 4, ...)`."""
        more = ", ..." if self.count > len(self.rows) else ""
        return f"{counted(self.count, 'row')} ({', '.join(map(str, self.rows))}{more})"


@dataclass(frozen=True, slots=True)
class Converted:
    """Canonical rows."""

    rows: Any
    """A `Dataset` with the columns `prompt`, `chosen`, `rejected`, `agreement`, `strength`, `RATINGS`, `id`."""
    numbers: NDArray[np.int64]
    """The raw row that each row was made from."""
    left: Mapping[str, RowCount]
    """Reason (a key of `LEFT`) -> the rows that gave no pair."""

    def lines(self) -> list[str]:
        """Sentences about the rows that were left out."""
        return said_of(self.left)


def sample_of(rows: Dataset) -> Sample:
    """The first rows of a dataset."""
    table: Mapping[str, list[Any]] = next(iter(rows.with_format(None).iter(batch_size=_SAMPLE)), {})
    return Sample(table, _AllRows(rows))


@dataclass(frozen=True, slots=True)
class _AllRows:
    """All rows of a dataset (see `adapter.AllRows`)."""

    rows: Dataset

    def search(self, column: str, wanted: Callable[[Any], bool]) -> list[Any]:
        batches = self.rows.with_format(None).select_columns([column]).iter(batch_size=_BATCH)
        found = ([value for value in batch[column] if wanted(value)] for batch in batches)
        return next(filter(None, found), [])

    def has_keys(self, column: str, keys: Iterable[str]) -> bool:
        import pyarrow as pa
        import pyarrow.compute as pc

        if type(self.rows.features[column]).__name__ != "Json":
            kind = str(self.rows.features.arrow_schema.field(column).type)
            return any(f"{key}: " in kind for key in keys)
        parts = self.rows.with_format("arrow").select_columns([column]).iter(batch_size=_BATCH)
        either = "|".join(f'"{key}"' for key in keys)
        return any(pc.any(pc.match_substring_regex(part[column].cast(pa.string()), either)).as_py() for part in parts)

    def distinct(self, column: str, most: int) -> list[Any] | None:
        batches = self.rows.with_format(None).select_columns([column]).iter(batch_size=10_000)
        return distinct_of((value for batch in batches for value in batch[column]), most)


def convert(rows: Dataset, adapter: Adapter, *, name: str) -> Converted:
    """Makes canonical rows.

    Args:
        rows: raw rows.
        adapter: a format with `rows` or `table`.
        name: name of the dataset, for the progress bar.
    """
    carried = [column for column in (*CARRIED, GOLD) if column in rows.column_names]
    import datasets

    features = _features(carried)
    plain = rows.with_format(None)
    ignored = sorted(adapter.ignores(sample_of(rows))) if adapter.ignores is not None else []
    if adapter.rows is None:
        table = _as_json(_collect(_all_made(plain, adapter, ignored), carried, plain))
        return _without_left(datasets.Dataset.from_dict(table, features=features))
    with _progress_bar(len(plain)):
        mapped = plain.map(
            partial(_batch, adapter.name, carried, ignored),
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            remove_columns=plain.column_names,
            features=features,
            new_fingerprint=_fingerprint(plain._fingerprint, adapter.name, [*carried, *(f"-{one}" for one in ignored)]),
            desc=f"Reading {name} as {adapter.name}",
        )
    return _without_left(mapped)


def _all_made(rows: Dataset, adapter: Adapter, ignored: Sequence[str]) -> Iterator[tuple[int, Made]]:
    singly = (
        {key: values[place] for key, values in table.items() if key not in ignored}
        for table in rows.iter(batch_size=_BATCH)
        for place in range(len(next(iter(table.values()))))
    )
    if adapter.table is not None:
        yield from adapter.table(singly)
        return
    assert adapter.rows is not None
    for index, row in enumerate(singly):
        for made in adapter.rows(row):
            yield index, made


def _batch(
    name: str,
    carried: Sequence[str],
    ignored: Sequence[str],
    table: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
) -> Any:
    """The function that `datasets` calls with a batch of columns; it is named after its format, so that the result can
    be cached.
    """
    adapter = FORMATS[name]
    assert adapter.rows is not None
    rows = [{key: values[place] for key, values in table.items()} for place in range(len(indices))]
    own = ({key: value for key, value in row.items() if key not in ignored} for row in rows)
    made = ((place, item) for place, row in enumerate(own) for item in adapter.rows(row))
    columns = _collect(made, carried, rows)
    columns["row"] = [indices[place] for place in columns["row"]]
    return _as_json(columns)


def _collect(
    made: Iterable[tuple[int, Made]], carried: Sequence[str], rows: Sequence[Row] | Dataset
) -> dict[str, list[Any]]:
    """Columns of canonical rows, and of reasons for rows without a pair."""
    names = tuple(dict.fromkeys((*_MADE, *carried)))
    columns: dict[str, list[Any]] = {column: [] for column in (*names, "row", "reason")}
    for index, item in made:
        columns["row"].append(index)
        columns["reason"].append(item.reason if isinstance(item, Left) else None)
        values: Mapping[str, Any] = {}
        if not isinstance(item, Left):
            values = with_carried(item, rows[index], carried) if carried else item
        for column in names:
            value = values.get(column)
            columns[column].append(_share(value) if column == "agreement" else value)
    return columns


def with_carried(made: Mapping[str, Any], row: Row, carried: Sequence[str]) -> Mapping[str, Any]:
    """What a format made of a row, with the row's own values of columns for which it made none."""
    return {**made, **{column: row.get(column) for column in carried if made.get(column) is None}}


def _share(value: Any) -> float | None:
    """An agreement as a number; NaN, which reading refuses, for anything but a number."""
    found = number(value)
    return None if value is None or value == "" else math.nan if found is None else found


def _as_json(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Encodes values as JSON here, because `datasets` would read the answer "4" as the JSON of a number."""
    plain = (*_NUMBERS, "row", "reason")
    return {name: values if name in plain else list(map(json_text, values)) for name, values in columns.items()}


def _features(carried: Sequence[str]) -> Features:
    """The column types; texts and messages may differ from row to row, so they are kept as JSON."""
    from datasets import Features, Json, Value

    return Features(
        {column: Json() for column in dict.fromkeys((*_MADE, *carried))}
        | {column: Value("float64") for column in _NUMBERS}
        | {"row": Value("int64"), "reason": Value("string")}
    )


def _without_left(rows: Dataset) -> Converted:
    """Removes the reasons and counts them."""
    numbers, kept = array("q"), bytearray()
    left: dict[str, RowCount] = {}
    for table in rows.select_columns(["row", "reason"]).iter(batch_size=100_000):
        for row, reason in zip(table["row"], table["reason"], strict=True):
            numbers.append(row)
            kept.append(reason is None)
            if reason is None:
                continue
            left.setdefault(reason, RowCount()).add(row)
    columns = [column for column in rows.column_names if column != "reason"]
    places = np.flatnonzero(np.frombuffer(kept, np.bool_)) if kept else np.zeros(0, np.int64)
    chosen = rows.select_columns(columns)
    if len(places) < len(kept):
        chosen = chosen.select(places)
    return Converted(chosen, np.asarray(numbers, dtype=np.int64)[places], left)


def said_of(left: Mapping[str, RowCount]) -> list[str]:
    """A sentence for each reason why something gave no pair."""
    return [_line(reason, count) for reason, count in left.items()]


def _line(reason: str, left: RowCount) -> str:
    wrong, fix = LEFT[reason]
    rows = ", ".join(map(str, left.rows))
    more = ", ..." if left.count > len(left.rows) else ""
    return f"{left.count:,} left out (rows {rows}{more}): {wrong}. {fix}"


@contextmanager
def _progress_bar(rows: int) -> Iterator[None]:
    """Shows the progress bar of `datasets` only for long work on a terminal."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not are_progress_bars_disabled() and (rows < _SHOW_PROGRESS or not sys.stderr.isatty())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _fingerprint(rows: str, format: str, carried: Sequence[str]) -> str:
    columns = " ".join((*_MADE, *carried))
    return hashlib.sha256(f"{rows} {format} {columns} tokens {TOKENS_VERSION}".encode()).hexdigest()[:16]
