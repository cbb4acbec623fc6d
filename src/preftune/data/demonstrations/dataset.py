"""Demonstrations: answers to be imitated, from whatever people have, as a lazy sequence of `Example`.

Preferences are demonstrations too: of each prompt the answers that no other was preferred to, each once.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from preftune.data.conversion.filters import split_key, text_key
from preftune.data.formats.adapter import Sample
from preftune.data.formats.apply import LeftOut, sample_of
from preftune.data.formats.demonstrations import (
    DEMONSTRATION_FORMATS,
    DemonstrationReader,
    find_columns,
    label_column,
    unknown_shape,
)
from preftune.data.formats.registry import FORMATS, recognise
from preftune.data.pairs.checks import not_used, unused_texts
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.open import read_pairs
from preftune.data.pairs.row_reader import RowReader
from preftune.data.reading.load import Source, display_name, load_rows
from preftune.errors import DatasetError
from preftune.types import Example

if TYPE_CHECKING:
    from datasets import Dataset

_BATCH = 1000
_HEAD = 1000
"""Rows looked at when data are opened, so that a wrong shape is told before a model is loaded."""

_SINGLE = frozenset({"kto", "thumbs", "alpaca"})
"""Formats of preferences whose rows hold one answer each."""


class Reader(Protocol):
    """Makes demonstrations of rows."""

    @property
    def needed(self) -> Sequence[str]: ...

    @property
    def facts(self) -> tuple[Any, ...]: ...

    def read(self, row: Mapping[str, Any], place: int) -> Example | str: ...


@dataclass(frozen=True, slots=True)
class ChosenSide:
    """The chosen answers of preferences."""

    pairs: RowReader

    @property
    def needed(self) -> list[str]:
        return self.pairs.needed

    @property
    def facts(self) -> tuple[Any, ...]:
        return ("chosen", sorted(self.pairs.columns.paths.items()), self.pairs.chat)

    def read(self, row: Mapping[str, Any], place: int) -> Example:
        pair = self.pairs.pair(row, place)
        return Example(
            pair.prompt,
            (pair.chosen,),
            id=pair.id,
            chat_template_kwargs=pair.chat_template_kwargs,
            tools=pair.tools,
            row=pair.row,
            source=pair.source,
        )


class DemonstrationDataset(Sequence[Example]):
    """Rows as demonstrations, read when they are asked for; the raw `datasets.Dataset` stays memory-mapped.

    `rows[i]` and iteration raise `DatasetError` for a row that is none.
    """

    def __init__(
        self,
        rows: Dataset,
        reader: Reader,
        *,
        name: str,
        places: NDArray[np.int64],
        notes: Sequence[str] = (),
        left: Mapping[str, LeftOut] | None = None,
        format: str | None = None,
    ) -> None:
        """
        Args:
            rows: all of them.
            places: of the rows that hold a demonstration.
            left: why the others have none: reason -> count and first rows.
        """
        self.needed = rows.with_format(None).select_columns(list(reader.needed))
        self.reader = reader
        self.name = name
        self.places = places
        self.notes = tuple(notes)
        """What was assumed about the data, in plain sentences."""
        self.left = dict(left or {})
        self.format = format
        """The format that was named or recognised; None where the columns were named."""

    def __len__(self) -> int:
        return len(self.places)

    def __repr__(self) -> str:
        return f"DemonstrationDataset({self.name!r}, {len(self)} demonstrations)"

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> DemonstrationDataset: ...
    def __getitem__(self, index: int | slice) -> Example | DemonstrationDataset:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        place = int(self.places[operator.index(index)])
        return self._read(self.needed[place], place)

    def __iter__(self) -> Iterator[Example]:
        for batch in self.batches(_BATCH):
            yield from batch

    def batches(self, size: int) -> Iterator[list[Example]]:
        """The demonstrations in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            places = self.places[start : start + size]
            for table in self.needed.select(places).iter(batch_size=size):
                yield [
                    self._read({key: values[at] for key, values in table.items()}, int(place))
                    for at, place in enumerate(places)
                ]

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> DemonstrationDataset:
        """The demonstrations at these positions, in this order."""
        chosen = self.places[np.asarray(indices, dtype=np.int64)]
        return self._with(self.reader, chosen)

    def as_chat(self) -> DemonstrationDataset:
        """The same as conversations: a text prompt becomes the user's turn, a text answer the assistant's."""
        if isinstance(self.reader, ChosenSide):
            old = self.reader.pairs
            reader: Reader = ChosenSide(RowReader(old.columns, old.name, True, old.numbers, old.scores, old.scale))
        elif isinstance(self.reader, DemonstrationReader):
            reader = DemonstrationReader(self.reader.columns, self.reader.name, chat=True)
        else:
            raise DatasetError(f"{self.name} is a mixture. Make conversations of its parts before they are mixed.")
        return self._with(reader, self.places)

    def _with(self, reader: Reader, places: NDArray[np.int64]) -> DemonstrationDataset:
        return DemonstrationDataset(
            self.needed,
            reader,
            name=self.name,
            places=places,
            notes=self.notes,
            left=self.left,
            format=self.format,
        )

    def _read(self, row: Mapping[str, Any], place: int) -> Example:
        read = self.reader.read(row, place)
        if isinstance(read, str):
            raise DatasetError(f"{self.name} row {place} holds no demonstration ({read}).")
        return read


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
                "columns and format say how data are read, and these demonstrations were opened already."
            )
        return source
    if isinstance(source, PairDataset):
        return _chosen_sides(source)
    name = name or display_name(source)
    rows = load_rows(source, split=split, config=config, revision=revision)
    if not hasattr(rows, "select_columns") or not hasattr(rows, "__len__"):
        raise DatasetError(f"{name} is streamed, and training needs data of known length. Load it without streaming.")
    if len(rows) == 0:
        raise DatasetError(f"{name} has no rows. Give at least one demonstration.")
    sample = sample_of(rows)
    if _is_preference(sample, format, columns, name):
        return _chosen_sides(read_pairs(rows, columns=columns, format=format, name=name))
    if format is not None and format not in DEMONSTRATION_FORMATS and format not in _SINGLE:
        known = ", ".join(DEMONSTRATION_FORMATS)
        raise DatasetError(f"format: {format!r} is not a format of demonstrations. Known are {known}.")
    return _own(rows, sample, name=name, format=format, columns=columns)


def _own(
    rows: Any, sample: Sample, *, name: str, format: str | None, columns: Mapping[str, str | None] | None
) -> DemonstrationDataset:
    """Data that are demonstrations as they are."""
    asked, shape, found, notes = dict(columns or {}), {}, None, []
    content = {"messages", "prompt", "completion", "text"} & {key for key, column in asked.items() if column}
    if not content:
        wanted = [
            known for known in DEMONSTRATION_FORMATS.values() if format in (None, known.name, *_SINGLE - {"alpaca"})
        ]
        for candidate in wanted:
            shape = dict(candidate.columns(sample) or {})
            if shape:
                found = candidate
                break
        if found is None:
            raise unknown_shape(rows.features, name=name)
        if format is None and any(canonical != column for canonical, column in shape.items()):
            notes.append(f"The rows are read as {found.name} ({found.holds}); --format (format=) names another format.")
    judged = _is_labelled(sample, format, name)
    labelled = label_column(sample) if judged else None
    if judged and labelled is None and "label" not in asked:
        raise DatasetError(
            f"{name} holds thumbs inside its turns, so some of its answers are bad ones. Make pairs of it first "
            "(preftune convert), whose chosen side can be trained on, or name a column with --columns label=YOURS."
        )
    if labelled is not None and "label" not in asked:
        shape["label"] = labelled
    columns_read = find_columns(rows.features, shape, asked, name=name)
    notes += not_used(unused_texts(sample, columns_read.needed))
    reader = DemonstrationReader(columns_read, name, chat=found is not None and found.chat)
    places, left = _places(rows, reader)
    if len(places) == 0:
        raise DatasetError(f"{name}: none of its {len(rows):,} answers is labelled as a good one. Check {labelled!r}.")
    data = DemonstrationDataset(
        rows, reader, name=name, places=places, notes=notes, left=left, format=found.name if found else None
    )
    for _ in data[:_HEAD]:
        pass  # a wrong row among the first is told now
    return data


def _places(rows: Any, reader: DemonstrationReader) -> tuple[NDArray[np.int64], dict[str, LeftOut]]:
    """Which rows hold a demonstration to imitate; only a label says no."""
    if "label" not in reader.columns:
        return np.arange(len(rows)), {}
    from preftune.data.formats.single_answers import verdict

    good, bad, place = [], LeftOut(), 0
    needed = list({path[0] for path in reader.columns.paths["label"]})
    for table in rows.with_format(None).select_columns(needed).iter(batch_size=10_000):
        for values in zip(*table.values(), strict=True):
            label = reader.columns.pick(dict(zip(table, values, strict=True))).get("label")
            if verdict(label):
                good.append(place)
            else:
                bad.add(place)
            place += 1
    return np.asarray(good, dtype=np.int64), {"bad_answer": bad} if bad.count else {}


def _is_preference(sample: Sample, format: str | None, columns: Mapping[str, str | None] | None, name: str) -> bool:
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
    """Whether some of the answers may be bad ones."""
    if format in ("kto", "thumbs"):
        return True
    adapter = recognise(sample, name=name)
    return adapter is not None and adapter.name in ("kto", "thumbs")


def _chosen_sides(pairs: PairDataset) -> DemonstrationDataset:
    """The answers of preferences that nothing in the data beats."""
    chosen: dict[tuple[int, int], int] = {}
    beaten: set[tuple[int, int]] = set()
    left = {"repeated": LeftOut(), "beaten": LeftOut()}
    for place, pair in enumerate(pairs):
        prompt = split_key(pair)
        beaten.add((prompt, text_key(pair.rejected)))
        key = (prompt, text_key(pair.chosen))
        if key in chosen:
            left["repeated"].add(pair.row)
        else:
            chosen[key] = place
    places = []
    for key, place in chosen.items():
        if key in beaten:
            left["beaten"].add(pairs[place].row)
        else:
            places.append(place)
    if not places:
        raise DatasetError(
            f"{pairs.name}: every answer is preferred in one row and rejected in another, so none is a demonstration. "
            "See preftune audit."
        )
    note = (
        f"{pairs.name} holds preferences: their chosen side is imitated "
        f"({len(places):,} answers; an answer that another one is preferred to is left out)."
    )
    return DemonstrationDataset(
        pairs.needed,
        ChosenSide(pairs.reader),
        name=pairs.name,
        places=np.asarray(places, dtype=np.int64),
        notes=(*pairs.notes, note),
        left={reason: out for reason, out in left.items() if out.count},
        format=pairs.format,
    )


def question_key(example: Example) -> int:
    """64-bit hash of what must not be on both sides of a split: the prompt, or a conversation's turns before the first
    answer; a text by itself.
    """
    prompt = example.prompt
    if prompt is None and isinstance(example.completion, list):
        turns = example.completion
        first = next((at for at, turn in enumerate(turns) if at and turn["role"] == "assistant"), len(turns))
        prompt = turns[:first]
    return text_key(prompt or example.completion)
