"""A dataset as a lazy sequence of `PreferencePair`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.adapters.adapter import number
from preftune.data.adapters.shaping import Shaped, shape
from preftune.data.columns import Columns, guess_columns, missing_columns, resolve_columns
from preftune.data.formats import to_pair
from preftune.data.listed_rows import ListedRows
from preftune.data.load import Source, display_name, load_rows
from preftune.errors import DatasetError
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from datasets import Dataset

_HEAD = 1000
"""Rows converted at once when a dataset is opened, so that a wrong shape is told before a model is loaded."""

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class RowReader:
    """Makes pairs of raw rows; small enough to be sent to other processes."""

    columns: Columns
    name: str
    chat: bool
    numbers: NDArray[np.int64] | None
    """The row number of each position, where they differ (after `select`, or where rows make several pairs)."""
    scores: tuple[str, ...] = ()
    """The columns of strength: one that holds it, or the ratings of chosen and rejected."""
    scale: float | None = None
    """Nats of margin per unit of strength; None where strength is no margin."""

    def pair(self, row: Mapping[str, Any], index: int) -> PreferencePair:
        at = index if self.numbers is None else int(self.numbers[index])
        values = self.columns.pick(row)
        if self.scale is not None:
            values["margin"] = self.scale * max(0.0, self.strength(row) or 0.0)
        return to_pair(values, name=self.name, row=at, chat=self.chat, prompts="prompt" in self.columns)

    def strength(self, row: Mapping[str, Any]) -> float | None:
        """How much better the chosen side is, in the dataset's own units; None where the row does not say."""
        values = [number(row.get(column)) for column in self.scores]
        if not values or None in values:
            return None
        chosen, *rejected = (value for value in values if value is not None)
        return chosen - sum(rejected)

    @property
    def needed(self) -> list[str]:
        """The columns that must be read."""
        return list(dict.fromkeys((*self.columns.needed, *(self.scores if self.scale is not None else ()))))

    def pairs(self, table: Mapping[str, Sequence[Any]], start: int) -> list[PreferencePair]:
        """The pairs of a batch of columns, whose first row has the position `start`."""
        count = len(next(iter(table.values())))
        return [self.pair({key: values[i] for key, values in table.items()}, start + i) for i in range(count)]


class PairDataset(Sequence[PreferencePair]):
    """Rows in canonical form, converted when they are read; the raw `datasets.Dataset` stays memory-mapped.

    `pairs[i]` and iteration raise `DatasetError` for a row that is no preference. `PreferencePair.row` counts in the
    dataset that was opened, also after `select`.
    """

    def __init__(
        self,
        rows: Dataset | ListedRows,
        columns: Columns,
        *,
        name: str = "the dataset",
        numbers: NDArray[np.int64] | None = None,
        notes: Sequence[str] = (),
        chat: bool = False,
        raw: Dataset | ListedRows | None = None,
        format: str | None = None,
        scores: tuple[str, ...] = (),
        scale: float | None = None,
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

    def _with(self, rows: Dataset | ListedRows, numbers: NDArray[np.int64] | None, chat: bool) -> PairDataset:
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


def read_pairs(
    source: Source | PairDataset,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
    name: str | None = None,
) -> PairDataset:
    """Opens preference data; see `load_rows` for what `source` can be and `adapters` for the formats.

    Args:
        columns: canonical name -> the dataset's own name, where they differ: `{"chosen": "better"}`. A dot reaches into
            a column ("input.messages"), a plus joins texts ("instruction+input"), None leaves a column unread.
        format: a key of `adapters.FORMATS`; None to recognise it by its shape.
        margin_from_scores: nats of margin per unit of the data's own strength (a point of a rating, a rank, a unit of
            ln(votes)). None leaves margins alone: strength in other units than reward is no margin.
        name: what messages call the data; by default the path, or "the dataset".
    Raises:
        DatasetError: nothing to read, missing columns, or (among the first 1,000 rows; later ones when they are read)
            a row that is no preference.
    """
    if isinstance(source, PairDataset):
        if columns or format is not None or margin_from_scores is not None:
            raise DatasetError(
                "columns, format and margin_from_scores say how data are read, and these pairs were opened already. "
                "Give them where the pairs are loaded."
            )
        return source
    name = name or display_name(source)
    rows = load_rows(source, split=split, config=config, revision=revision)
    if not hasattr(rows, "select_columns") or not hasattr(rows, "__len__"):
        raise DatasetError(
            f"{name} is streamed, and pairs need a dataset of known length. Load it without streaming, or take a part: "
            "datasets.Dataset.from_list(list(stream.take(10_000)))."
        )
    if len(rows) == 0:
        raise DatasetError(f"{name} has no rows. Give at least one preference pair.")
    shaped = shape(rows, format=format, columns=columns, name=name)
    resolved = resolve_columns(shaped.rows.features, shaped.columns, name=name)
    _check_nulls(shaped.rows, resolved, name)
    if margin_from_scores is not None:
        _check_scale(margin_from_scores, shaped, resolved, name)
    pairs = PairDataset(
        shaped.rows,
        resolved,
        name=name,
        numbers=shaped.numbers,
        raw=rows,
        format=shaped.format,
        scores=shaped.scores,
        scale=margin_from_scores,
    )
    pairs.notes = (*shaped.notes, *_optional_columns(resolved), *_check_head(pairs))
    return pairs


def _check_scale(scale: float, shaped: Shaped, columns: Columns, name: str) -> None:
    if isinstance(scale, bool) or number(scale) is None or scale < 0:
        raise DatasetError(f"margin_from_scores is {scale!r}; give the nats of margin per point, such as 0.5.")
    if not shaped.scores:
        raise DatasetError(
            f"{name} has no ratings of both answers that margin_from_scores could be taken from. Leave it out, or name "
            "a column that holds margins in nats: --columns margin=COLUMN."
        )
    if "margin" in columns:
        raise DatasetError(
            f"{name} has a column 'margin' and margin_from_scores is given. Keep one of the two: --columns margin= "
            "(columns={'margin': None}) leaves the column unread."
        )


def load_pairs(
    source: Source,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> PairDataset:
    """Preference pairs from a path, "-", a hub id, a `datasets.Dataset` or a list of dicts. See `read_pairs`."""
    return read_pairs(
        source,
        split=split,
        config=config,
        revision=revision,
        columns=columns,
        format=format,
        margin_from_scores=margin_from_scores,
    )


def _optional_columns(columns: Columns) -> list[str]:
    """Columns that change what is trained and that a dataset may hold for another purpose."""
    return [
        f"The column {column!r} is read as {meaning}; "
        f"--columns {column}= (columns={{{column!r}: None}}) leaves it unread."
        for column, meaning in (
            ("weight", "each pair's factor in the loss"),
            ("margin", "the distance in reward that the loss asks for"),
            ("system", "each conversation's system prompt"),
        )
        if column in columns
    ]


def _check_nulls(rows: Dataset | ListedRows, columns: Columns, name: str) -> None:
    """A side that is null in some row, found in the table itself, however large it is."""
    for canonical in ("chosen", "rejected"):
        (path, *_) = columns.paths[canonical]
        for start, end, nulls in _nulls(rows, path[0]):
            row = start + nulls[0]
            has = [column for column, value in rows.with_format(None)[row].items() if value is not None]
            raise DatasetError(
                f"{name} row {row} has no {canonical!r} ({len(nulls)} such rows among the first {end}; this one has: "
                f"{', '.join(map(repr, has))}). Fill it in, or remove such rows: "
                f"dataset.filter(lambda row: row[{path[0]!r}] is not None)."
            )


def _nulls(rows: Dataset | ListedRows, column: str) -> Iterator[tuple[int, int, list[int]]]:
    """Begin and end of every part of the table that has nulls in the column, and where they are."""
    if isinstance(rows, ListedRows):
        if nulls := rows.nulls(column):
            yield 0, len(rows), nulls
        return
    import pyarrow.compute as pc

    start = 0
    for part in rows.select_columns([column]).with_format("arrow").iter(batch_size=100_000):
        end = start + part.num_rows
        if part.column(0).null_count:
            yield start, end, pc.indices_nonzero(pc.is_null(part.column(0))).to_pylist()
        start = end


def _check_head(pairs: PairDataset) -> list[str]:
    """Converts the first rows; what is strange about all of them is told, or refused."""
    head = pairs[:_HEAD]
    if "prompt" in pairs.columns:
        notes = []
        head_pairs = list(head)
        repeating = sum(
            isinstance(p.prompt, str)
            and bool(p.prompt.strip())
            and str(p.chosen).startswith(p.prompt)
            and str(p.rejected).startswith(p.prompt)
            for p in head_pairs
        )
        if repeating:
            notes.append(
                f"In {repeating} of the first {len(head_pairs)} rows chosen and rejected both begin with the text of "
                "the prompt; it is trained as part of the answers. Cut it off if it is only repeated there."
            )
        return notes
    texts = [pair for pair in head if isinstance(pair.prompt, str)]
    apart = [pair.row for pair in head if not pair.prompt]
    features, paths, name = pairs.rows.features, pairs.columns.paths, pairs.name
    likely = texts and _prompt_like(pairs)
    if likely or len(apart) == len(head):
        because = ", and chosen and rejected hold the answers only" if likely or texts or apart else ""
        raise missing_columns(["prompt"], features, paths, name=name, row=0 if likely else apart[0], because=because)
    if texts:
        return [
            "There is no column 'prompt': the words that chosen and rejected begin with in common are taken for the "
            f"prompt ({len(apart)} of the first {len(head)} rows have none)."
        ]
    return [
        "There is no column 'prompt': the turns that chosen and rejected begin with in common are taken for the prompt."
    ]


def _prompt_like(pairs: PairDataset) -> bool:
    """Whether another column looks like the prompt of plain strings."""
    taken = {path[0] for found in pairs.columns.paths.values() for path in found}
    return bool(guess_columns(["prompt"], pairs.rows.features, taken))
