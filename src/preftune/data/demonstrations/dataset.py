"""Demonstrations: answers to imitate, from data in any known format, as a lazy sequence of `Example`.

Preferences are demonstrations too: for each prompt, the answers to which no other was preferred, each once.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preftune.amounts import counted
from preftune.data.conversion.filters import prompt_key, split_key, text_key
from preftune.data.formats.adapter import Sample
from preftune.data.formats.apply import RowCount, sample_of
from preftune.data.formats.demonstrations import (
    DEMONSTRATION_FORMATS,
    DemonstrationReader,
    find_columns,
    label_column,
    unknown_shape,
)
from preftune.data.formats.registry import FORMATS, recognise
from preftune.data.pairs.checks import HEAD, not_used, unused_texts
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.open import read_pairs
from preftune.data.pairs.row_reader import RowReader
from preftune.data.reading.load import Source, display_name, load_table
from preftune.data.row_dataset import RowDataset, rows_of
from preftune.errors import DatasetError
from preftune.types import Example

_SINGLE = frozenset({"kto", "thumbs", "alpaca"})
"""Formats of preferences with one answer per row."""


@dataclass(frozen=True, slots=True)
class ChosenSide:
    """The chosen answers of preferences."""

    pairs: RowReader

    @property
    def needed(self) -> list[str]:
        return self.pairs.needed

    @property
    def facts(self) -> tuple[Any, ...]:
        return ("chosen", self.pairs.facts)

    def as_chat(self) -> ChosenSide:
        return ChosenSide(self.pairs.as_chat())

    def read(self, row: Mapping[str, Any], number: int) -> Example:
        pair = self.pairs.read(row, number)
        return replace(pair.example, completions=(pair.chosen,), pairs=())


class DemonstrationDataset(RowDataset[Example]):
    """Rows as demonstrations: one completion each, without preferences."""

    kind = "demonstration"


def load_demonstrations(
    source: Source | DemonstrationDataset,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    name: str | None = None,
) -> DemonstrationDataset:
    """Opens demonstrations; see `load_rows` for what `source` can be.

    Args:
        columns: canonical name (of `DEMONSTRATION_COLUMNS`) -> the dataset's own, where they differ.
        format: a key of `DEMONSTRATION_FORMATS`, or of `FORMATS` for preferences; None to recognise it.
        name: what messages call the data.
    Raises:
        DatasetError: nothing to read, an unknown shape, or (among the first 1,000 rows; later ones when they are read)
            a row that holds no demonstration.
    """
    if isinstance(source, DemonstrationDataset):
        if columns or format is not None:
            raise DatasetError(
                "columns and format apply when data are opened, and these demonstrations are already open. Leave them "
                "out."
            )
        return source
    if isinstance(source, PairDataset):
        return _chosen_sides(source)
    name = name or display_name(source)
    rows = load_table(source, name, split=split, config=config, revision=revision)
    sample = sample_of(rows)
    if is_preference(sample, format, columns, name):
        return _chosen_sides(read_pairs(rows, columns=columns, format=format, name=name))
    if format is not None and format not in DEMONSTRATION_FORMATS and format not in _SINGLE:
        known = ", ".join(DEMONSTRATION_FORMATS)
        raise DatasetError(f"format: {format!r} is not a format of demonstrations. Known are {known}.")
    return _own(rows, sample, name=name, format=format, columns=columns)


def _own(
    rows: Any, sample: Sample, *, name: str, format: str | None, columns: Mapping[str, str | None] | None
) -> DemonstrationDataset:
    """Opens data that are demonstrations already, or the good ones among answers with labels."""
    opened, reader = answers(rows, sample, name=name, format=format, columns=columns)
    data = _good(opened, reader)
    if not len(data):
        labelled = reader.columns.paths["label"][0][0]
        raise DatasetError(
            f"{name}: it has no good answer ({counted(len(rows), 'answer')} in all). Check {labelled!r}."
        )
    for _ in data[:HEAD]:
        pass  # a wrong row among the first ends this now
    return data


def labelled_rows(
    rows: Any, sample: Sample, *, name: str, format: str | None, columns: Mapping[str, str | None] | None
) -> DemonstrationDataset:
    """Answers with labels, including the bad ones; the reader's columns hold the label. Raises: DatasetError."""
    return answers(rows, sample, name=name, format=format, columns=columns, labelled=True)[0]


def answers(
    rows: Any,
    sample: Sample,
    *,
    name: str,
    format: str | None,
    columns: Mapping[str, str | None] | None,
    labelled: bool = False,
) -> tuple[DemonstrationDataset, DemonstrationReader]:
    """Answers of all rows, and their reader, which knows a column of labels if there is one.

    Args:
        labelled: whether there must be one.
    Raises: DatasetError.
    """
    asked, shape, found, notes = dict(columns or {}), {}, None, []
    content = {"messages", "prompt", "completion", "text"} & {key for key, column in asked.items() if column}
    if not content:
        wanted = [
            known for known in DEMONSTRATION_FORMATS.values() if format in (None, known.name, *_SINGLE - {"alpaca"})
        ]
        named = [known for known in wanted if known.columns(sample)]
        if not named:
            raise unknown_shape(rows.features, name=name, labelled=labelled)
        found = next((known for known in named if known.fits(sample)), named[0])
        shape = dict(found.columns(sample) or {})
        if format is None and any(canonical != column for canonical, column in shape.items()):
            notes.append(f"The rows are read as {found.name} ({found.holds}); --format (format=) names another format.")
    judged = _is_labelled(sample, format, name)
    label = label_column(sample, name=name) if judged and "label" not in asked else None
    if judged and label is None and "label" not in asked:
        raise DatasetError(
            f"{name} holds thumbs inside its turns, so some of its answers are bad. First convert it to pairs "
            "(preftune convert), whose chosen side can be trained on, or name a column with --columns label=YOURS."
        )
    if label is not None:
        shape["label"] = label
    columns_read = find_columns(rows.features, shape, asked, name=name)
    if labelled and "label" not in columns_read:
        raise DatasetError(
            f"{name} has no column that says whether an answer is good. Name it with --columns label=YOURS (values "
            "like true and false, 1 and 0, up and down), or give preference pairs."
        )
    notes += not_used(unused_texts(sample, columns_read.needed))
    reader = DemonstrationReader(columns_read, name, chat=found is not None and found.chat)
    opened = DemonstrationDataset(rows, reader, name=name, notes=notes, format=found.name if found else None)
    return opened, reader


def _good(data: DemonstrationDataset, reader: DemonstrationReader) -> DemonstrationDataset:
    """The rows whose answer is to be imitated; only a label excludes a row."""
    if "label" not in reader.columns:
        return data
    good, left, number = array("q"), dict[str, RowCount](), 0
    labels = list({path[0] for path in reader.columns.paths["label"]})
    for table in data.needed.select_columns(labels).iter(batch_size=10_000):
        for row in rows_of(table):
            if (reason := reader.refused(row)) is None:
                good.append(number)
            else:
                left.setdefault(reason, RowCount()).add(number)
            number += 1
    data.left = left
    return data.select(np.frombuffer(good, np.int64) if good else [])


def is_preference(sample: Sample, format: str | None, columns: Mapping[str, str | None] | None, name: str) -> bool:
    asked = {key for key, column in (columns or {}).items() if column}
    if format is not None:
        return format in FORMATS and format not in DEMONSTRATION_FORMATS and format not in _SINGLE
    if asked & {"messages", "completion", "text"}:
        return False
    if asked & {"chosen", "rejected"}:
        return True
    adapter = recognise(sample, name=name)
    return adapter is not None and adapter.name not in _SINGLE


def _is_labelled(sample: Sample, format: str | None, name: str) -> bool:
    """Whether some of the answers may be bad."""
    if format in ("kto", "thumbs"):
        return True
    adapter = recognise(sample, name=name)
    return adapter is not None and adapter.name in ("kto", "thumbs")


def _chosen_sides(pairs: PairDataset) -> DemonstrationDataset:
    """The answers in preferences that no other answer in the data beats."""
    chosen, rejected, rows = array("Q"), array("Q"), array("q")
    for pair in pairs:
        prompt = split_key(pair)
        chosen.extend((prompt, text_key(pair.chosen)))
        rejected.extend((prompt, text_key(pair.rejected)))
        rows.append(pair.row)
    answers, worse = (
        np.asarray(keys, np.uint64).view([("prompt", "u8"), ("answer", "u8")]) for keys in (chosen, rejected)
    )
    _, first = np.unique(answers, return_index=True)
    first.sort()
    is_beaten = np.isin(answers[first], np.unique(worse))
    places = first[~is_beaten]
    again = np.delete(np.asarray(rows, np.int64), first)
    beaten = [pairs.number(place) for place in first[is_beaten].tolist()]
    left = {"repeated": RowCount(), "beaten": RowCount()}
    for reason, numbers in (("repeated", again.tolist()), ("beaten", beaten)):
        for number in numbers:
            left[reason].add(number)
    if not len(places):
        raise DatasetError(
            f"{pairs.name}: every answer is preferred in one row and rejected in another, so none is a demonstration. "
            "See preftune audit."
        )
    note = (
        f"{pairs.name} holds preferences: their chosen side is imitated ({counted(len(places), 'answer')}; an answer "
        "that another one beats is left out)."
    )
    chosen_rows = pairs.select(places)
    return DemonstrationDataset(
        chosen_rows.rows,
        ChosenSide(pairs.reader),
        name=pairs.name,
        numbers=chosen_rows.numbers,
        notes=(*pairs.notes, note),
        left={reason: out for reason, out in left.items() if out.count},
        format=pairs.format,
    )


def question_key(example: Example) -> int:
    """64-bit hash of the key that must not be on both sides of a split: the prompt, a conversation's turns before the
    first answer, or a whole text.
    """
    prompt = example.prompt
    if prompt is None and isinstance(example.completion, list):
        turns = example.completion
        first = next((at for at, turn in enumerate(turns) if at and turn["role"] == "assistant"), len(turns))
        prompt = turns[:first]
    return prompt_key(prompt) if prompt else text_key(example.completion)
