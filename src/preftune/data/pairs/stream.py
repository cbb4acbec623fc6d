"""Preference pairs that are read one by one: for data larger than memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from preftune.data.formats.adapter import Adapter, Left
from preftune.data.formats.apply import CARRIED, GOLD, RowCount, sample_of, with_carried
from preftune.data.formats.columns import CANONICAL, Columns, resolve_columns
from preftune.data.formats.registry import FORMATS
from preftune.data.formats.select import shape
from preftune.data.pairs.checks import (
    HEAD,
    check_head,
    check_scale,
    contradicting,
    good_ones,
    not_used,
    optional_columns,
    unused_texts,
)
from preftune.data.pairs.row_reader import Attempt, RowReader
from preftune.data.reading.arrow_tables import check_row
from preftune.data.reading.files import from_rows, is_pipe, stream_file
from preftune.data.reading.load import Source, display_name, load_rows, path_of, shards_of
from preftune.errors import DatasetError
from preftune.types import PreferencePair

Row = Mapping[str, Any]

_SHAPING = frozenset({"prompt", "system"})
"""Columns that determine how all rows are read; other columns may first occur in any row."""


@dataclass
class PairStream(Iterable[PreferencePair]):
    """Pairs that are read one by one; every iteration reads the data again.

    Iteration raises `DatasetError` for a row that is not a preference; `attempts` yields its problem and continues.
    """

    rows: Callable[[], Iterable[Row]]
    """Starts a pass over the raw rows."""
    reader: RowReader
    name: str
    format: str | None
    notes: tuple[str, ...] = ()
    left: dict[str, RowCount] = field(default_factory=dict)
    """The rows that gave no pair in the latest iteration, by reason (a key of `formats.adapter.LEFT`)."""
    unused: tuple[str, ...] = ()
    """Columns of the first rows with text that are not used."""
    rows_read: int = 0
    """Raw rows read in the latest iteration."""
    _adapter: Adapter | None = None
    """Makes canonical rows from raw ones; None if the columns are only named."""
    _ignored: frozenset[str] = frozenset()
    """Columns that it does not read (`Adapter.ignores`)."""
    _known: frozenset[str] = frozenset()

    def as_chat(self) -> PairStream:
        """The same pairs as conversations: a text prompt becomes the user's turn, text answers the assistant's."""
        return replace(self, reader=self.reader.as_chat())

    def __iter__(self) -> Iterator[PreferencePair]:
        for attempt in self.attempts():
            if attempt.pair is None:
                raise DatasetError(attempt.problem)
            yield attempt.pair

    def attempts(self) -> Iterator[Attempt]:
        """Every row with its pair or its problem, and its strength."""
        self.left, self.rows_read = {}, 0
        for number, row in enumerate(self.rows()):
            self.rows_read = number + 1
            for attempt in self.attempts_of(row, number):
                if isinstance(attempt, Left):
                    self.left.setdefault(attempt.reason, RowCount()).add(number)
                else:
                    yield attempt

    def attempts_of(self, row: Row, number: int) -> Iterator[Attempt | Left]:
        """The pairs of one row, their problems, or why it gives none. Raises: DatasetError for what is no row."""
        check_row(row, self.name, number)
        if self._adapter is None:
            late = (_SHAPING & row.keys()) - self._known
            if late:
                raise DatasetError(
                    f"{self.name} row {number} has the column {min(late)!r}, which none of the first {HEAD:,} rows "
                    "has; those determine how a stream is read. Load it without streaming."
                )
            yield self.reader.attempt(row, number)
        else:
            yield from self._made(self._adapter, row, number)

    def _made(self, adapter: Adapter, row: Row, number: int) -> Iterator[Attempt | Left]:
        assert adapter.rows is not None
        for made in adapter.rows({key: value for key, value in row.items() if key not in self._ignored}):
            if isinstance(made, Left):
                yield made
            else:
                values = with_carried(made, row, [column for column in (*CARRIED, GOLD) if row.get(column) is not None])
                yield self.reader.attempt(values, number)


def open_stream(
    source: Source,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
) -> PairStream:
    """Opens preference data as a stream. Args are those of `read_pairs`.

    Raises:
        DatasetError: nothing to read, missing columns, none of the first 1,000 rows a preference, or a format whose
            rows belong together.
    """
    name = display_name(source)
    rows = reader_of(source, split=split, config=config, revision=revision)
    first = list(islice(rows(), HEAD))
    if not first:
        raise DatasetError(f"{name} has no rows. Give at least one.")
    return stream_of(rows, first, name=name, columns=columns, format=format, margin_from_scores=margin_from_scores)


def stream_of(
    rows: Callable[[], Iterable[Row]],
    first: list[Row],
    *,
    name: str,
    columns: Mapping[str, str | None] | None,
    format: str | None,
    margin_from_scores: float | None,
) -> PairStream:
    """`open_stream` of rows whose first ones, at least one, were read already."""
    head = from_rows(first, name)
    shaped = shape(head, format=format, columns=columns, name=name)
    made = shaped.numbers is not None
    adapter = FORMATS[str(shaped.format)] if made else None
    if adapter is not None and adapter.rows is None:
        raise DatasetError(
            f"{name} is read as {adapter.name}, whose rows belong together ({adapter.holds}), but a stream reads one "
            "row at a time. Load it without streaming."
        )
    resolved = resolve_columns(shaped.rows.features, shaped.columns, name=name, rows=shaped.rows)
    if margin_from_scores is not None:
        check_scale(margin_from_scores, shaped, resolved, name)
    chat = "system" in resolved
    anywhere = {} if made else {c: ((c,),) for c in CANONICAL if c not in (*shaped.columns, *_SHAPING)}
    reader = RowReader(
        Columns({**anywhere, **resolved.paths}), name, chat, shaped.scores, margin_from_scores, shaped.ratings
    )
    ignored = adapter.ignores(sample_of(head)) if adapter is not None and adapter.ignores is not None else ()
    known = frozenset(head.column_names) | set(shaped.columns)
    stream = PairStream(rows, reader, name, shaped.format, _adapter=adapter, _ignored=frozenset(ignored), _known=known)
    beginning = replace(stream, rows=lambda: first)
    stream.unused = tuple(unused_texts(sample_of(head), shaped.used or (*resolved.needed, *shaped.scores)))
    tried = list(beginning.attempts())
    noticed = check_head(good_ones(tried), resolved, head.features, name=name, unused=stream.unused)
    noticed += contradicting(tried, margin_from_scores)
    note = () if adapter is None else (f"The rows are read as {adapter.name} ({adapter.holds}).",)
    stream.notes = (*(note or shaped.notes), *optional_columns(resolved), *not_used(stream.unused), *noticed)
    return stream


def reader_of(source: Source, **options: Any) -> Callable[[], Iterable[Row]]:
    """A function that starts a pass over a source, as often as it is called."""
    if isinstance(source, str | os.PathLike) and source != "-":
        path = path_of(source)
        if is_pipe(path):
            raise DatasetError(
                f"{path} is a pipe, which can be read only once, but a stream reads its data more than once. Leave "
                "streaming out, or write the data to a file."
            )
        if path.is_file() and options["split"] in ("train", "all"):
            return lambda: stream_file(path)
        if path.is_dir() and (shards := shards_of(path, options["split"])):
            return lambda: chain.from_iterable(map(stream_file, shards))
    streamed: Any = load_rows(source, **options, streaming=True)
    return lambda: streamed
