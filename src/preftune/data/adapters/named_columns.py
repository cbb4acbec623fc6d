"""Formats whose rows are pairs already, under other names or in other places: only the columns are named.

- `trl`: `chosen`, `rejected`, mostly `prompt`; text or messages, explicit or implicit prompts, `tools`. Also
  Anthropic/hh-rlhf, trl-lib/ultrafeedback_binarized, HuggingFaceH4/ultrafeedback_binarized, Argilla's cleaned
  UltraFeedback, and preftune's own. Columns of scores give the strength.
- `openai`: `input` {messages, tools}, `preferred_output`, `non_preferred_output`: the preference format of OpenAI.
- `sharegpt`: `conversations` [{from, value}], `chosen`, `rejected`: ShareGPT as LLaMA-Factory has it.
- `alpaca-preference`: `instruction`, `input`, and two answers: LLaMA-Factory's Alpaca form (with `history` [[question,
  answer], ...]), argilla/ultrafeedback-binarized-preferences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from preftune.data.adapters.adapter import Adapter, Left, Made, Row, Sample, number, records

_SIDES = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
_CONVERSATIONS = ("conversations", "conversation", "messages")


def _sides(sample: Sample) -> tuple[str, str] | None:
    return next((names for names in _SIDES if sample.has(*names)), None)


def _scores(sample: Sample) -> tuple[str, ...] | None:
    if number(sample.first("strength")) is not None:  # as `preftune convert` writes it
        return ("strength",)
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


def _whole(sample: Sample) -> bool:
    """Whether the sides are conversations from their beginning, which need no other prompt."""
    chosen = sample.first("chosen")
    return isinstance(chosen, list) and len(chosen) > 1


def _sharegpt_columns(sample: Sample) -> dict[str, str]:
    return {"prompt": str(sample.name_of(_CONVERSATIONS)), "chosen": "chosen", "rejected": "rejected"}


def _is_alpaca(sample: Sample) -> bool:
    return (
        _sides(sample) is not None
        and "prompt" not in sample
        and isinstance(sample.first("instruction"), str)
        and not _is_sharegpt(sample)
    )


def _alpaca_columns(sample: Sample) -> dict[str, str] | None:
    if "history" in sample and any(sample.values("history")):
        return None
    chosen, rejected = _sides(sample) or _SIDES[0]
    prompt = "instruction+input" if "input" in sample else "instruction"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _alpaca_rows(row: Row) -> Iterator[Made]:
    """With a history the row is a conversation: the earlier questions and answers, then this instruction."""
    texts = [row.get("instruction"), row.get("input")]
    question = "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())
    history = [records(pair) for pair in records(row.get("history"))]
    if row.get("chosen") is None or row.get("rejected") is None or any(len(pair) != 2 for pair in history):
        yield Left("other_shape")
        return
    turns = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    prompt: list[dict[str, Any]] = [*turns, {"role": "user", "content": question}]
    yield {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _is_openai(sample: Sample) -> bool:
    asked = sample.first("input")
    return sample.has("preferred_output", "non_preferred_output") and isinstance(asked, Mapping) and "messages" in asked


def _openai_columns(sample: Sample) -> dict[str, str]:
    columns = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    if any(isinstance(asked, Mapping) and asked.get("tools") for asked in sample.values("input")):
        columns["tools"] = "input.tools"
    return columns


def _is_trl(sample: Sample) -> bool:
    return sample.has("chosen", "rejected") and not _is_sharegpt(sample) and not _is_alpaca(sample)


ADAPTERS = (
    Adapter("trl", "prompt, chosen and rejected", _is_trl, columns=lambda sample: {}, scores=_scores),
    Adapter("openai", "input, preferred_output and non_preferred_output", _is_openai, columns=_openai_columns),
    Adapter("sharegpt", "a conversation with two answers", _is_sharegpt, columns=_sharegpt_columns, scores=_scores),
    Adapter(
        "alpaca-preference",
        "an instruction with two answers",
        _is_alpaca,
        columns=_alpaca_columns,
        scores=_scores,
        rows=_alpaca_rows,
    ),
)
