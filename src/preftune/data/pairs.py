"""A dataset as a lazy sequence of `PreferencePair`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.adapters.convert import LeftOut, sample_of
from preftune.data.adapters.shaping import shape
from preftune.data.columns import Columns, resolve_columns
from preftune.data.load import Source, display_name, load_rows
from preftune.data.pair_checks import (
    HEAD,
    check_head,
    check_nulls,
    check_scale,
    good_ones,
    not_used,
    optional_columns,
    unused_texts,
)
from preftune.data.row_reader import Attempt, RowReader
from preftune.errors import DatasetError
from preftune.types import PreferencePair

if TYPE_CHECKING:
    from datasets import Dataset

    from preftune.data.stream import PairStream

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
    tolerant: bool = False,
) -> PairDataset:
    """Opens preference data; see `load_rows` for what `source` can be and `adapters` for the formats.

    Args:
        columns: canonical name -> the dataset's own name, where they differ: `{"chosen": "better"}`. A dot reaches into
            a column ("input.messages"), a plus joins texts ("instruction+input"), None leaves a column unread.
        format: a key of `adapters.FORMATS`; None to recognise it by its shape.
        margin_from_scores: nats of margin per unit of the data's own strength (a point of a rating, a rank, a unit of
            ln(votes)). None leaves margins alone: strength in other units than reward is no margin.
        name: what messages call the data; by default the path, or "the dataset".
        tolerant: rows that are no preference are no reason to refuse the data, unless all of the first 1,000 are none;
            `PairDataset.attempts` tells of each.
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
    _check_countable(rows, name)
    shaped = shape(rows, format=format, columns=columns, name=name)
    resolved = resolve_columns(shaped.rows.features, shaped.columns, name=name)
    if not tolerant:
        check_nulls(shaped.rows, resolved, name)
    if margin_from_scores is not None:
        check_scale(margin_from_scores, shaped, resolved, name)
    pairs = PairDataset(
        shaped.rows,
        resolved,
        name=name,
        numbers=shaped.numbers,
        raw=rows,
        format=shaped.format,
        scores=shaped.scores,
        scale=margin_from_scores,
        left=shaped.left,
        unused=unused_texts(sample_of(rows), shaped.used or (*resolved.needed, *shaped.scores)),
    )
    head = good_ones(pairs[:HEAD].attempts()) if tolerant else list(pairs[:HEAD])
    told = check_head(head, resolved, rows.features, name=name, unused=pairs.unused)
    pairs.notes = (*shaped.notes, *optional_columns(resolved), *not_used(pairs.unused), *told)
    return pairs


def _check_countable(rows: Any, name: str) -> None:
    """Raises: DatasetError for a stream, or for no rows."""
    if not hasattr(rows, "select_columns") or not hasattr(rows, "__len__"):
        raise DatasetError(
            f"{name} is streamed, and pairs need a dataset of known length. Load it without streaming, or take a part: "
            "datasets.Dataset.from_list(list(stream.take(10_000)))."
        )
    if len(rows) == 0:
        raise DatasetError(f"{name} has no rows. Give at least one preference pair.")


@overload
def load_pairs(
    source: Source,
    *,
    split: str = ...,
    columns: Mapping[str, str | None] | None = ...,
    format: str | None = ...,
    margin_from_scores: float | None = ...,
    config: str | None = ...,
    revision: str | None = ...,
    streaming: Literal[False] = ...,
    seed: int = ...,
) -> PairDataset: ...
@overload
def load_pairs(
    source: Source,
    *,
    split: str = ...,
    columns: Mapping[str, str | None] | None = ...,
    format: str | None = ...,
    margin_from_scores: float | None = ...,
    config: str | None = ...,
    revision: str | None = ...,
    streaming: Literal[True],
) -> PairStream: ...
def load_pairs(
    source: Source,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    seed: int = 0,
) -> PairDataset | PairStream:
    """Preference pairs from a path, "-", a hub id, a `datasets.Dataset`, a list of dicts, or several of these.

    Args:
        source: what `load_rows` takes; or a list of names ("a.jsonl", or with proportions "a.jsonl:0.7"), which are
            mixed as `mix_pairs` does.
        split, columns, format, margin_from_scores, config, revision: see `read_pairs`; for a list, of each of them.
        streaming: a `PairStream`, which reads as it goes and keeps nothing.
        seed: of the rows that are drawn where a list has proportions.
    Raises:
        DatasetError: see `read_pairs`.
    """
    from preftune.data.mixture import is_mixture, mix_pairs, parse_sources
    from preftune.data.stream import open_stream

    options: dict[str, Any] = {
        "split": split,
        "config": config,
        "revision": revision,
        "columns": columns,
        "format": format,
        "margin_from_scores": margin_from_scores,
    }
    if is_mixture(source):
        if streaming:
            raise DatasetError(
                "streaming=True reads one dataset, and several are named. Give one, or leave streaming out: large "
                "files are read by way of a table on disk anyway."
            )
        named = parse_sources(source)
        parts = [read_pairs(name, **options) for name, _ in named]
        return mix_pairs(parts, [proportion for _, proportion in named], seed=seed)
    return open_stream(source, **options) if streaming else read_pairs(source, **options)
