"""Rows of a stream as examples, read one by one as the datasets of known length read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from preftune.data.demonstrations.dataset import answers, is_preference
from preftune.data.formats.adapter import Left, Row
from preftune.data.formats.apply import sample_of
from preftune.data.labelled import answer_of, sides_of
from preftune.data.pairs.stream import PairStream, reader_of, stream_of
from preftune.data.reading.files import from_rows
from preftune.data.reading.load import Source, display_name
from preftune.data.streams.rows import Pass, first_rows, passes_of
from preftune.errors import DatasetError
from preftune.types import Example

Kind = Literal["pair", "answer", "demonstration"]


@dataclass(frozen=True)
class ExampleStream:
    """Examples that are made of rows while those are read."""

    kind: Kind
    name: str
    begin: Pass
    read: Callable[[Row, int], Iterator[Example | Left]]
    """The examples of a row, by its number. Raises: DatasetError for a row that holds none."""
    facts: tuple[Any, ...]
    """The settings that an example depends on, besides its row, as plain values."""
    notes: tuple[str, ...] = ()
    first: Example | None = None
    """The first example."""


def open_examples(
    source: Source,
    kind: Kind,
    *,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    margin_from_scores: float | None = None,
    chat: bool = False,
    gold: bool = False,
    **where: Any,
) -> ExampleStream:
    """Opens data as a stream of examples.

    Args:
        source: what `load_rows` takes, of which nothing is kept; a `datasets.IterableDataset` too. A `PairStream` or an
            `ExampleStream` is read as it was opened, without regard to the other arguments but `kind` and `gold`.
        kind: what is made of the rows.
        columns, format, margin_from_scores: as for `load_pairs`, `load_labelled` and `load_demonstrations`.
        chat: whether texts become turns.
        gold: whether pairs are read with their gold answers.
        where: `split`, `config` and `revision`, as for `load_rows`.
    Raises:
        DatasetError: nothing to read, an unknown shape, a wrong row among the first 1,000, or data whose rows belong
            together.
    """
    if isinstance(source, ExampleStream):
        return source
    if isinstance(source, PairStream):
        if kind == "demonstration":
            raise _of_preferences(source.name)
        begin = passes_of(source.rows)
        return _checked(_pairs(source, kind, begin, gold=gold), first_rows(begin, source.name))
    name = display_name(source)
    begin = passes_of(reader_of(source, **{"split": "train", "config": None, "revision": None, **where}))
    first = first_rows(begin, name)
    reading: dict[str, Any] = {"columns": columns, "format": format}
    if kind != "pair":
        head = from_rows(first, name)
        if not is_preference(sample_of(head), format, columns, name):
            return _checked(_answers(name, kind, head, begin, chat=chat, **reading), first)
    if kind == "demonstration":
        raise _of_preferences(name)
    pairs = stream_of(lambda: begin(0), first, name=name, **reading, margin_from_scores=margin_from_scores)
    return _checked(_pairs(pairs.as_chat() if chat else pairs, kind, begin, gold=gold), first)


def _of_preferences(name: str) -> DatasetError:
    return DatasetError(
        f"{name} holds preferences. SFT leaves out the answers that another row beats, which a stream cannot know. "
        "Leave streaming out, or name columns: --columns prompt=prompt completion=chosen."
    )


def _checked(stream: ExampleStream, first: list[Row]) -> ExampleStream:
    """The stream with its first example. Raises: DatasetError about a wrong row among the first ones."""
    found: Example | None = None
    for number, row in enumerate(first):
        for one in stream.read(row, number):
            if found is None and isinstance(one, Example):
                found = one
    if found is None:
        raise DatasetError(f"None of the first rows of {stream.name} gives a {stream.kind} to train on.")
    return replace(stream, first=found)


def _pairs(pairs: PairStream, kind: Kind, begin: Pass, *, gold: bool) -> ExampleStream:
    if gold:
        pairs = replace(pairs, reader=replace(pairs.reader, golden=True))

    def read(row: Row, number: int) -> Iterator[Example | Left]:
        for attempt in pairs.attempts_of(row, number):
            if isinstance(attempt, Left):
                yield attempt
            elif attempt.pair is None:
                raise DatasetError(attempt.problem)
            else:
                yield from sides_of(attempt.pair) if kind == "answer" else (attempt.pair.example,)

    return ExampleStream(kind, pairs.name, begin, read, (kind, pairs.reader.facts), pairs.notes)


def _answers(name: str, kind: Kind, head: Any, begin: Pass, *, chat: bool, **reading: Any) -> ExampleStream:
    """Answers with labels, or demonstrations, of which those with a bad label are left out."""
    labelled = kind == "answer"
    opened, reader = answers(head, sample_of(head), name=name, labelled=labelled, **reading)
    judged = "label" in reader.columns
    made = reader.as_chat() if chat else reader

    def read(row: Row, number: int) -> Iterator[Example | Left]:
        if labelled:
            found = answer_of(made, row, number, name=name)
            yield Left(found) if isinstance(found, str) else found
        elif judged and (reason := made.refused(row)) is not None:
            yield Left(reason)
        else:
            yield made.read(row, number)

    return ExampleStream(kind, name, begin, read, (kind, made.facts), tuple(opened.notes))
