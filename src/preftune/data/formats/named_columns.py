"""Formats whose rows are already pairs, under other names or in other places: only the columns are named.

- `trl`: `chosen`, `rejected`, mostly `prompt`; text or messages, explicit or implicit prompts, `tools`. Also
  Anthropic/hh-rlhf, trl-lib/ultrafeedback_binarized, HuggingFaceH4/ultrafeedback_binarized, Argilla's cleaned
  UltraFeedback, and preftune's own. Columns of scores give the strength.
- `openai`: `input` {messages, tools}, `preferred_output`, `non_preferred_output`: the preference format of OpenAI.
- `sharegpt`: `conversations` [{from, value}], `chosen`, `rejected`: ShareGPT as LLaMA-Factory has it; UltraInteract's
  `trajectory`.
- `alpaca-preference`: `instruction` and `input`, or `question`, `query` or `input` alone, and two answers:
  LLaMA-Factory's Alpaca form and ms-swift's (with `history` [[question, answer], ...]), the orca pairs of Intel and
  Argilla (with `system`), argilla/ultrafeedback-binarized-preferences, lvwerra/stack-exchange-paired.
- `ms-swift`: `messages`, whose last answer is the better one, and `rejected_response` or `rejected_messages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from preftune.data.chat.messages import read_transcript, role_of
from preftune.data.formats.adapter import ANSWERS, Adapter, Left, Made, Row, Sample, after_history, number, records
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response", "rejected_response"),
    ("response_j", "response_k"),
    ("accepted", "rejected"),
)
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_CONVERSATIONS = ("conversations", "conversation", "messages", "trajectory")
_QUESTIONS = ("instruction", "question", "query", "input")
"""Columns that may hold the prompt if there is no column `prompt`."""


def _sides(sample: Sample) -> tuple[str, str] | None:
    return next((names for names in _SIDES if sample.has(*names)), None)


def _scores(sample: Sample) -> tuple[str, ...] | None:
    if number(sample.first("strength")) is not None:  # as `preftune convert` writes it
        return ("strength",)
    return _ratings(sample)


def _ratings(sample: Sample) -> tuple[str, ...] | None:
    for names in _SCORES:
        if sample.has(*names) and all(number(sample.first(name)) is not None for name in names):
            return names
    return None


def _is_sharegpt(sample: Sample) -> bool:
    column = sample.name_of(_CONVERSATIONS)
    if column is None or "prompt" in sample or not sample.has("chosen", "rejected"):
        return False
    turns = sample.first(column)
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], Mapping) and not _whole(sample)


def _whole(sample: Sample, side: str = "chosen") -> bool:
    """Whether the sides are complete conversations, which need no other prompt."""
    chosen = sample.first(side)
    if isinstance(chosen, str):
        return read_transcript(chosen) is not None
    return isinstance(chosen, list) and len(chosen) > 1


def _sharegpt_columns(sample: Sample) -> dict[str, str]:
    return {"prompt": str(sample.name_of(_CONVERSATIONS)), "chosen": "chosen", "rejected": "rejected"}


def _question(sample: Sample) -> str | None:
    """The column of the question: an instruction, or another question, as text."""
    column = sample.name_of(_QUESTIONS)
    return column if column is not None and isinstance(sample.first(column), str) else None


def _is_alpaca(sample: Sample) -> bool:
    sides, column = _sides(sample), _question(sample)
    return (
        sides is not None
        and column is not None
        and "prompt" not in sample
        and (column == "instruction" or not _whole(sample, sides[0]))
        and not _is_sharegpt(sample)
        and not _is_swift(sample)
    )


def _alpaca_columns(sample: Sample) -> dict[str, str] | None:
    if sample.ever("history"):
        return None
    (chosen, rejected), question = _sides(sample) or _SIDES[0], _question(sample) or "instruction"
    prompt = "instruction+input" if question == "instruction" and "input" in sample else question
    system = {"system": "system_prompt"} if "system_prompt" in sample and "system" not in sample else {}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **system}


def _alpaca_rows(row: Row) -> Iterator[Made]:
    """Makes a conversation of a row with a history: the earlier questions and answers, then this instruction."""
    column = next((name for name in _QUESTIONS if row.get(name) is not None), None)
    texts = [row.get(name) for name in (("instruction", "input") if column == "instruction" else (column,)) if name]
    question = "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())
    prompt = after_history(question, {"history": row.get("history") or []})
    sides = next((names for names in _SIDES if all(row.get(name) is not None for name in names)), None)
    if sides is None or prompt is None:
        yield Left("other_shape")
        return
    yield {"prompt": prompt, "chosen": row[sides[0]], "rejected": row[sides[1]]}


def _alpaca_uses(sample: Sample) -> list[str]:
    question = _question(sample) or "instruction"
    return [question, *(["input"] if question == "instruction" else []), "history", *(_sides(sample) or ())]


_REJECTED = ("rejected_response", "rejected_messages")


def _is_swift(sample: Sample) -> bool:
    return (
        isinstance(sample.first("messages"), list) and sample.any(*_REJECTED) and not sample.any("chosen", "rejected")
    )


def _swift_columns(sample: Sample) -> dict[str, str] | None:
    if "rejected_messages" not in sample:
        return None
    return {"chosen": "messages", "rejected": "rejected_messages"}


def _swift_rows(row: Row) -> Iterator[Made]:
    """Makes a pair whose better answer is the last turn of the conversation."""
    turns, rejected = records(row.get("messages")), row.get("rejected_response")
    last = turns[-1] if turns else None
    if not isinstance(last, Mapping) or role_of(last) != "assistant" or not isinstance(rejected, str):
        yield Left("other_shape")
        return
    yield {"prompt": turns[:-1], "chosen": [last], "rejected": [{"role": "assistant", "content": rejected}]}


def _is_openai(sample: Sample) -> bool:
    asked = sample.first("input")
    return sample.has("preferred_output", "non_preferred_output") and isinstance(asked, Mapping) and "messages" in asked


def _openai_columns(sample: Sample) -> dict[str, str]:
    columns = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    if any(isinstance(asked, Mapping) and "tools" in asked for asked in sample.values("input")):
        columns["tools"] = "input.tools"
    return columns


def _is_trl(sample: Sample) -> bool:
    return sample.has("chosen", "rejected") and not _is_sharegpt(sample) and not _is_alpaca(sample)


def _texts_of(sample: Sample, column: str) -> set[str]:
    """The texts in the lists of a column."""
    return {str(one) for answers in sample.values(column) for one in records(answers)}


def _check_sides(format: str, rows: Dataset, sample: Sample) -> None:
    """Raises: DatasetError for sides that only name the column of the answer, or its place in a list."""
    sides = _sides(sample) or _SIDES[0]
    said = {value for side in sides for value in sample.values(side) if isinstance(value, str)}
    letters = {name.rpartition("_")[2] for name in sample.columns if name.startswith(("response", "answer", "output"))}
    names = {value for value in said if value in sample or value.lower() in letters}
    if said and names == said:
        raise DatasetError(
            f"column {sides[0]!r} holds {sample.first(sides[0])!r}, which is the name of another column, not an "
            f"answer. Put the answers themselves into {sides[0]!r} and {sides[1]!r}; or call the column 'label' and "
            f"remove {sides[1]!r} (--format {format}, format='{format}', if they are answers)."
        )
    listed = next((column for column in ANSWERS if records(sample.first(column))), None)
    if listed is None or not said or said & _texts_of(sample, listed):
        return
    longest = max(len(records(answers)) for answers in sample.values(listed))
    if all(one.isdecimal() and int(one) <= longest for one in said):
        raise DatasetError(
            f"column {sides[0]!r} holds {sample.first(sides[0])!r}, which is the place of an answer in the list "
            f"{listed!r}, not an answer. Put the answers themselves into {sides[0]!r} and {sides[1]!r} (--format "
            f"{format}, format='{format}', if they are answers)."
        )


ADAPTERS = (
    Adapter(
        "trl",
        "prompt, chosen and rejected",
        _is_trl,
        columns=lambda sample: {},
        scores=_scores,
        ratings=_ratings,
        check=partial(_check_sides, "trl"),
    ),
    Adapter("openai", "input, preferred_output and non_preferred_output", _is_openai, columns=_openai_columns),
    Adapter(
        "sharegpt",
        "a conversation with two answers",
        _is_sharegpt,
        columns=_sharegpt_columns,
        scores=_scores,
        ratings=_ratings,
        check=partial(_check_sides, "sharegpt"),
    ),
    Adapter(
        "alpaca-preference",
        "an instruction or question with two answers",
        _is_alpaca,
        columns=_alpaca_columns,
        scores=_scores,
        ratings=_ratings,
        rows=_alpaca_rows,
        uses=_alpaca_uses,
        check=partial(_check_sides, "alpaca-preference"),
    ),
    Adapter(
        "ms-swift",
        "a conversation that ends with the better answer, and a worse one",
        _is_swift,
        columns=_swift_columns,
        rows=_swift_rows,
        uses=lambda sample: ("messages", "rejected_response"),
    ),
)
