"""Judgements about two answers: from arenas (a conversation with each of two models) and from annotators (two outputs).

- `arena`: `conversation_a`, `conversation_b`, `winner` (model_a, model_b, or a tie): lmsys/chatbot_arena_conversations,
    lmsys/mt_bench_human_judgments (where `turn` is the number of the question after which the judgement was made),
    lmarena-ai's sets.
- `arena-prompts`: `prompt`, `response_a`, `response_b` (lists of turns as JSON text) and `winner_model_a`,
  `winner_model_b`, `winner_tie`: lmsys/lmsys-arena-human-preference-55k.
- `labelled-outputs`: a question (`instruction` and `input`, or one of them), `output_1`, `output_2` and `label` or
  `preference`: LLMBar, AlpacaFarm, AlpacaEval's annotations, JudgeBench (`response_A`, `response_B`, "A>B").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from preftune.data.formats.adapter import (
    PROMPTS,
    Adapter,
    Left,
    Made,
    Row,
    Sample,
    asked_columns,
    asked_of,
    number,
    records,
)
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

Judged = Literal["a", "b", "tie"]

_OUTPUTS = (
    ("output_1", "output_2"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("answer_1", "answer_2"),
    ("response_A", "response_B"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
)
_LABELS = ("label", "preference", "winner", "choice")
_WORDS: Mapping[str, Judged] = {
    **dict.fromkeys(("a", "answer_a", "model_a", "response_a", "a>b", "output_1", "response_1"), "a"),
    **dict.fromkeys(("b", "answer_b", "model_b", "response_b", "b>a", "a<b", "output_2", "response_2"), "b"),
    **dict.fromkeys(("tie", "both", "neither", "tie (bothbad)", "both_bad", "bothbad", "same", "a=b", "equal"), "tie"),
}
_MIDDLE = 1.5
"""The middle between the labels 1 and 2; AlpacaEval's weighted annotators give values in between, and 0 is a tie."""


def judged(value: Any) -> Judged | None:
    """The answer of two that a label prefers; None if it cannot be read."""
    at = number(value)
    if at is None:
        return _WORDS.get(str(value).strip().casefold())
    if at in (0, _MIDDLE):
        return "tie"
    return ("a" if at < _MIDDLE else "b") if 1 <= at <= 2 else None


def labelled_columns(sample: Sample) -> tuple[tuple[str, str], str] | None:
    """The columns of two outputs and of the label that prefers one; None for data without them or in another format."""
    outputs = next((names for names in _OUTPUTS if sample.has(*names)), None)
    if outputs is None or not sample.any(*PROMPTS):
        return None
    for column in _LABELS:
        values = sample.values(column)
        if values and all(judged(value) is not None for value in values):
            return outputs, column
    return None


def _check_labels(values: Iterable[Any], column: str, first: str, format: str) -> None:
    """Raises: DatasetError if the only numbers among the labels are 0 and 1."""
    given = [value for value in values if value is not None and str(value).strip()]
    if {number(value) for value in given if _WORDS.get(str(value).strip().casefold()) != "tie"} == {0, 1}:
        raise DatasetError(
            f"column {column!r} holds only 0 and 1, which does not say whether 0 is {first!r} or a tie. Write 'a', 'b' "
            f"or 'tie'; or name the format with --format {format} (format=), where 1 is the first, 2 the second and 0 "
            "a tie."
        )


def check_all_labels(rows: Dataset, sample: Sample) -> None:
    """Checks the labels of all rows: rows may be sorted by their label, so that the first ones hold only one value.

    Raises: DatasetError if all are 0 or 1, because 0 may mean the first output or a tie.
    """
    if (found := labelled_columns(sample)) is not None:
        (first, _), column = found
        _check_labels(rows.with_format(None).select_columns([column])[column], column, first, "labelled-outputs")


def _check_winners(rows: Dataset, sample: Sample) -> None:
    winners = rows.with_format(None).select_columns(["winner"])["winner"]
    _check_labels(winners, "winner", "conversation_a", "arena")


def _is_labelled(sample: Sample) -> bool:
    return not sample.any("chosen", "rejected") and labelled_columns(sample) is not None


def _labelled_rows(row: Row) -> Iterator[Made]:
    outputs = next((names for names in _OUTPUTS if all(row.get(name) is not None for name in names)), None)
    label = next((row[name] for name in _LABELS if row.get(name) is not None), None)
    yield _decided(asked_of(row), None if outputs is None else tuple(row[name] for name in outputs), label, row)


def _labelled_uses(sample: Sample) -> list[str]:
    found = labelled_columns(sample)
    return asked_columns(sample) if found is None else [*asked_columns(sample), *found[0], found[1]]


def _labelled_ignores(sample: Sample) -> list[str]:
    """Other columns of labels (a topic, a grade), and other outputs than those that the label compares."""
    found = labelled_columns(sample)
    if found is None:
        return []
    outputs, label = found
    return [name for name in (*_LABELS, *sum(_OUTPUTS, ())) if name != label and name not in outputs]


def _decided(prompt: Any, answers: Sequence[Any] | None, label: Any, row: Row) -> Made:
    """The pair of a judgement, or the reason for no pair."""
    if prompt is None or answers is None:
        return Left("other_shape")
    said = judged(label)
    if said is None:
        return Left("unrated")
    if said == "tie":
        return Left("tied")
    chosen, rejected = answers if said == "a" else reversed(answers)
    name = next((row[key] for key in ("id", "question_id", "pair_id") if row.get(key) is not None), None)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "id": name}


def _is_arena(sample: Sample) -> bool:
    return sample.has("conversation_a", "conversation_b", "winner")


def _arena_rows(row: Row) -> Iterator[Made]:
    sides = [_until(_turns(row.get(name)), row.get("turn")) for name in ("conversation_a", "conversation_b")]
    shared = 0
    while shared < min(map(len, sides)) - 1 and sides[0][shared] == sides[1][shared]:
        shared += 1
    if not shared:
        yield Left("other_shape")
        return
    yield _decided(sides[0][:shared], [side[shared:] for side in sides], row.get("winner"), row)


def _turns(value: Any) -> list[Any]:
    """Turns, also given as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return records(value)


def _until(turns: list[Any], question: Any) -> list[Any]:
    """A conversation up to the answer to the question of that number, counted from 1."""
    at = number(question)
    asked = [place for place, turn in enumerate(turns) if isinstance(turn, Mapping) and turn.get("role") == "user"]
    return turns if at is None or not 1 <= at < len(asked) else turns[: asked[int(at)]]


def _is_arena_prompts(sample: Sample) -> bool:
    return sample.has("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b")


def _arena_prompts_rows(row: Row) -> Iterator[Made]:
    questions = _texts(row.get("prompt"))
    answers = [_texts(row.get(name)) for name in ("response_a", "response_b")]
    if not questions or any(len(own) != len(questions) for own in answers):
        yield Left("other_shape")
        return
    sides = [[turn for pair in zip(questions, own, strict=True) for turn in _exchange(*pair)][1:] for own in answers]
    won = [bool(number(row.get(f"winner_model_{side}"))) or row.get(f"winner_model_{side}") is True for side in "ab"]
    label = "tie" if won[0] == won[1] else "a" if won[0] else "b"
    yield _decided([{"role": "user", "content": questions[0]}], sides, label, row)


def _texts(value: Any) -> list[str]:
    """The turns of one side, given as a list, as its JSON, or as a single text; empty if one of them is not a turn."""
    found = _turns(value)
    if not found and isinstance(value, str) and value.strip():
        found = [value]
    return found if all(isinstance(text, str) for text in found) else []


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ADAPTERS = (
    Adapter(
        "arena",
        "two models' conversations and which one is better",
        _is_arena,
        rows=_arena_rows,
        uses=lambda sample: ("conversation_a", "conversation_b", "winner", "turn", "question_id", "id"),
        check=_check_winners,
    ),
    Adapter(
        "arena-prompts",
        "a prompt, two models' answers and who won",
        _is_arena_prompts,
        rows=_arena_prompts_rows,
        uses=lambda sample: ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
    ),
    Adapter(
        "labelled-outputs",
        "two outputs and a label that prefers one: 1 the first, 2 the second, 0 neither",
        _is_labelled,
        rows=_labelled_rows,
        uses=_labelled_uses,
        ignores=_labelled_ignores,
        check=check_all_labels,
    ),
)
