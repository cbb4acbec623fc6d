"""People's judgements to compare a judge with: any preference data, or rows with two answers and a label.

Preference data: people preferred the chosen answer. Rows with `prompt`, `answer_a`, `answer_b` and `label` ("a", "b" or
"tie") may hold ties too, as may those of the format `labelled-outputs` (LLMBar's `input`, `output_1`, `output_2` and
`label` 1, 2 or 0, and its kin). Single votes are read where a row has them: a list `votes`, also inside `meta`, or
`agreement`, the share of annotators who agree with the label.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from preftune.amounts import counted
from preftune.data.formats.adapter import asked_columns
from preftune.data.formats.apply import sample_of
from preftune.data.formats.columns import Columns, find_column, listing
from preftune.data.formats.judgements import check_all_labels, judged, labelled_columns
from preftune.data.pairs.open import read_pairs
from preftune.data.reading.load import display_name, load_rows
from preftune.errors import DatasetError, RequestError
from preftune.generation.thoughts import split_thoughts
from preftune.judges.protocol import Judgement
from preftune.storage.jsonl import digest
from preftune.types import Text

COLUMNS = ("prompt", "answer_a", "answer_b", "label")
"""Of rows that are no pairs."""


@dataclass(frozen=True, slots=True)
class HumanLabel:
    """Two answers to one prompt and what people say of them."""

    id: str
    prompt: Text
    answer_a: str
    answer_b: str
    label: Judgement
    row: Mapping[str, Any] = field(default_factory=dict)
    """The raw row, for rules that read it."""
    votes: tuple[str, ...] = ()
    """What each annotator said, in whatever words: only whether two are the same counts."""
    agreement: float | None = None
    """Share of annotators who agree with the label."""


@dataclass(frozen=True, slots=True)
class HumanLabels:
    """The labels of a source, and what of it gave none."""

    labels: list[HumanLabel]
    name: str
    rows: int
    """Labels in the source, before `limit`."""
    notes: Sequence[str] = ()
    """What was assumed, and what was left out, in plain sentences."""


def load_labels(
    source: Any,
    *,
    split: str = "train",
    columns: Mapping[str, str | None] | None = None,
    format: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    thoughts: bool = False,
) -> HumanLabels:
    """Reads people's judgements.

    Args:
        source: what `load_rows` takes.
        columns, format: as for `load_pairs`; with `answer_a`, `answer_b` and `label` too.
        limit: number of labels, drawn at random with `seed`.
        thoughts: keep what a thinking model wrote before its answer in the answers.
    Raises: DatasetError for data that hold no judgements, or an invalid label; RequestError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit}: give at least 1.")
    name = display_name(source)
    rows: Any = load_rows(source, split=split)
    asked = {column: name for column, name in dict(columns or {}).items() if name}
    names = {**dict(zip(COLUMNS, COLUMNS, strict=True)), **_outputs(rows, format), **asked}
    notes: list[str] = []
    of_rows = {"answer_a", "answer_b", "label"} & set(columns or {})
    paths = {column: find_column(names[column], rows.features) for column in COLUMNS}
    missing = [names[column] for column in COLUMNS if paths[column] is None]
    if of_rows and missing:
        raise DatasetError(
            f"{name} has no column {missing[0]!r} (found: {listing(rows.features)}). Judgements need prompt, answer_a, "
            "answer_b and label: name columns with other names with --columns."
        )
    if not missing:
        labels = _of_rows(rows, Columns({column: path for column, path in paths.items() if path}), names["label"], name)
    else:
        labels, notes = _of_pairs(rows, columns, format, name)
    if not labels:
        raise DatasetError(
            f"{name} holds no judgements. Give preference pairs (prompt, chosen, rejected), or rows with prompt, "
            "answer_a, answer_b and label (a, b or tie)."
        )
    if not thoughts:
        labels = [
            replace(one, answer_a=split_thoughts(one.answer_a).answer, answer_b=split_thoughts(one.answer_b).answer)
            for one in labels
        ]
    chosen = labels
    if limit is not None and limit < len(labels):
        chosen = [labels[index] for index in sorted(random.Random(seed).sample(range(len(labels)), limit))]
        notes.append(f"{limit:,} of {counted(len(labels), 'judgement')}, drawn at random (seed {seed}).")
    return HumanLabels(chosen, name, len(labels), notes)


def _outputs(rows: Any, format: str | None) -> dict[str, str]:
    """What rows with two outputs and a label call the columns; nothing for other rows."""
    if format not in (None, "labelled-outputs") or not hasattr(rows, "iter"):
        return {}
    sample = sample_of(rows)
    if format is None:
        check_all_labels(rows, sample)
    found = labelled_columns(sample)
    if found is None:
        return {}
    (one, other), label = found
    return {"prompt": "+".join(asked_columns(sample)), "answer_a": one, "answer_b": other, "label": label}


def _of_rows(rows: Any, columns: Columns, said_in: str, name: str) -> list[HumanLabel]:
    found = []
    for number, row in enumerate(rows):
        values = columns.pick(row)
        said = values.get("label")
        label = judged(said)
        if label is None:
            raise DatasetError(
                f"{name} row {number}: {said_in!r} is {said!r}, which does not name the better answer. Write 'a', 'b' "
                "or 'tie', or 1, 2 or 0."
            )
        prompt, one, other = (values.get(column) for column in COLUMNS[:3])
        if not _is_prompt(prompt) or not isinstance(one, str) or not isinstance(other, str):
            raise DatasetError(
                f"{name} row {number}: a judgement needs a prompt and two answers as text (columns: "
                f"{listing(list(row))}). Fill them in, or name the columns with --columns."
            )
        agreement = _share(row.get("agreement"))
        found.append(HumanLabel(str(row.get("id", number)), prompt, one, other, label, row, _votes(row), agreement))
    return found


def _is_prompt(prompt: Any) -> TypeGuard[Text]:
    """Text, or messages."""
    if isinstance(prompt, str):
        return bool(prompt)
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(turn, Mapping) for turn in prompt)


def _of_pairs(
    rows: Any, columns: Mapping[str, str | None] | None, format: str | None, name: str
) -> tuple[list[HumanLabel], list[str]]:
    pairs = read_pairs(rows, columns=columns, format=format, name=name)
    found = []
    for pair in pairs:
        chosen, rejected = answer_text(pair.chosen), answer_text(pair.rejected)
        row = pairs.raw[pair.row]
        # Which of the two stands first is drawn by content, so that no judge gains by always saying "a".
        chosen_first = int(digest([pair.prompt, sorted((chosen, rejected))]), 16) % 2 == 0
        found.append(
            HumanLabel(
                id=str(pair.row) if pair.id is None else pair.id,
                prompt=pair.prompt,
                answer_a=chosen if chosen_first else rejected,
                answer_b=rejected if chosen_first else chosen,
                label="a" if chosen_first else "b",
                row=row,
                votes=_votes(row),
                agreement=pair.agreement,
            )
        )
    return found, list(pairs.notes)


def answer_text(answer: Text) -> str:
    """An answer as text; of turns what they say."""
    if isinstance(answer, str):
        return answer
    return "\n\n".join(str(turn.get("content") or "") for turn in answer)


def _votes(row: Mapping[str, Any]) -> tuple[str, ...]:
    inner = row.get("meta")
    votes = row.get("votes", inner.get("votes") if isinstance(inner, Mapping) else None)
    if not isinstance(votes, Sequence) or isinstance(votes, str):
        return ()
    return tuple(str(vote) for vote in votes if vote is not None)


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
