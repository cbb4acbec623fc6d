"""Single answers that are good or bad, for KTO: from rows with a label, and from preferences, whose two sides are such
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preftune.data.chat.messages import Where
from preftune.data.demonstrations.dataset import DemonstrationDataset, is_preference, labelled_rows
from preftune.data.demonstrations.mixture import EXAMPLE_COLUMNS, example_of, example_row
from preftune.data.formats.adapter import Row
from preftune.data.formats.apply import RowCount, sample_of
from preftune.data.formats.single_answers import verdict
from preftune.data.formats.to_pair import as_answer, as_turns, number_in
from preftune.data.pairs.dataset import PairDataset
from preftune.data.pairs.mixture import is_mixture, mixed, parse_sources
from preftune.data.pairs.open import read_pairs
from preftune.data.reading.arrow_tables import dataset_of
from preftune.data.reading.load import Source, display_name, load_table
from preftune.data.row_dataset import RowDataset
from preftune.errors import DatasetError
from preftune.types import Example, Label, PreferencePair, Text


@dataclass(frozen=True, slots=True)
class LabelledReader:
    """Reads canonical rows of answers with labels."""

    chat: bool = False

    @property
    def needed(self) -> Sequence[str]:
        return (*EXAMPLE_COLUMNS, "label", "weight", "number")

    @property
    def facts(self) -> tuple[Any, ...]:
        return ("labelled", self.chat)

    def as_chat(self) -> LabelledReader:
        """The same reader, with texts as turns."""
        return replace(self, chat=True)

    def read(self, row: Mapping[str, Any], number: int) -> Example:
        made = replace(example_of(row, row["number"]), labels=(Label(row["label"], row["weight"]),))
        if self.chat and isinstance(made.prompt, str):
            return replace(made, prompt=as_turns(made.prompt), completions=(as_answer(row["completion"]),))
        return made


class LabelledDataset(RowDataset[Example]):
    """Rows as examples of one completion with a label."""

    kind = "answer"


def load_labelled(
    source: Source | PairDataset | LabelledDataset,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    name: str | None = None,
) -> LabelledDataset:
    """Opens answers with labels; see `load_rows` for what `source` can be, or a list of names ("a.jsonl", or with
    proportions "a.jsonl:0.7"), which are mixed.

    Args:
        columns: canonical name -> the dataset's own: prompt, completion and label (or messages and label), or the names
            of pairs (prompt, chosen, rejected).
        format: kto or thumbs, or a format of pairs; None to recognise it.
        name: what messages call the data.
    Raises:
        DatasetError: nothing to read, an unknown shape, no labels, or a row that holds no answer.
    """
    if isinstance(source, LabelledDataset | PairDataset):
        if columns or format is not None:
            raise DatasetError(
                "columns and format apply when data are opened, and these answers are already open. Leave them out."
            )
        return source if isinstance(source, LabelledDataset) else _of_pairs(source)
    if is_mixture(source):
        named = parse_sources(source)
        options: dict[str, Any] = {"split": split, "config": config, "revision": revision}
        parts = [load_labelled(part, columns=columns, format=format, **options) for part, _ in named]
        return mix_labelled(parts, [proportion for _, proportion in named])
    name = name or display_name(source)
    rows = load_table(source, name, split=split, config=config, revision=revision)
    sample = sample_of(rows)
    if is_preference(sample, format, columns, name):
        return _of_pairs(read_pairs(rows, columns=columns, format=format, name=name))
    return _of_single_answers(labelled_rows(rows, sample, name=name, format=format, columns=columns))


def mix_labelled(
    parts: Sequence[LabelledDataset], proportions: Sequence[float | None], *, seed: int = 0
) -> LabelledDataset:
    """Concatenates the answers of all datasets, in their order; training shuffles them.

    Args:
        proportions: one per part, relative to each other; all None for all rows; see `mixture.share_out`.
        seed: seed of the draw.
    """
    if len(parts) == 1:
        return parts[0]
    mixture = mixed(parts, proportions, seed=seed, rows="answers")

    def rows() -> Iterator[Row]:
        for part in mixture.taken:
            for example in part:
                yield _canonical(replace(example, source=example.source or part.name))

    made = _made(rows, mixture.name, mixture.notes)
    made.left = mixture.left
    return made


def _of_pairs(pairs: PairDataset) -> LabelledDataset:
    def rows() -> Iterator[Row]:
        for pair in pairs:
            yield from map(_canonical, sides_of(pair))

    note = f"{pairs.name} holds preferences: each pair ({len(pairs):,} in all) counts as a good and a bad answer."
    return _made(rows, pairs.name, (*pairs.notes, note))  # the notes count the rows that gave no pair


def sides_of(pair: PreferencePair) -> tuple[Example, Example]:
    """The two sides of a pair as a good and a bad answer."""
    chosen, rejected = (
        replace(pair.example, completions=(side,), pairs=(), labels=(Label(good, pair.weight),))
        for side, good in ((pair.chosen, True), (pair.rejected, False))
    )
    return chosen, rejected


def answer_of(reader: Any, row: Mapping[str, Any], number: int, *, name: str) -> Example | str:
    """The answer of a row with its label, or the reason why there is none: a key of `LABELLED_REASONS`.

    Args:
        reader: a `DemonstrationReader` whose columns hold the label.
    """
    label = verdict(reader.columns.pick(row).get("label"))
    example = _with_prompt(reader.read(row, number))
    if label is None or example is None:
        return "no_label" if label is None else "no_answer"
    weight = number_in(row, "weight", 1.0, Where(name, number)) if "weight" in row else 1.0
    return replace(example, labels=(Label(label, weight),))


def _of_single_answers(data: DemonstrationDataset) -> LabelledDataset:
    left: dict[str, RowCount] = {}
    columns = ["weight"] if "weight" in data.rows.column_names else []

    def rows() -> Iterator[Row]:
        left.clear()  # the rows may be read a second time
        for table in data.row_batches(1000, columns):
            for number, row in table:
                found = answer_of(data.reader, row, number, name=data.name)
                if isinstance(found, str):
                    left.setdefault(found, RowCount()).add(number)
                else:
                    yield _canonical(found)

    made = _made(rows, data.name, data.notes)
    made.left = left
    return made


def _with_prompt(example: Example) -> Example | None:
    """The example with its last answer as the completion; None if it does not end with one."""
    if example.prompt is not None:
        return example
    turns: Text = example.completion
    if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
        return None
    return replace(example, prompt=turns[:-1], completions=(turns[-1:],))


def _canonical(example: Example) -> Row:
    (label,) = example.labels
    return {
        **example_row(example),
        "label": label.desirable,
        "weight": float(label.weight),
        "number": example.row,
    }


def _made(rows: Any, name: str, notes: Sequence[str]) -> LabelledDataset:
    return LabelledDataset(dataset_of(rows, name), LabelledReader(), name=name, notes=notes)
