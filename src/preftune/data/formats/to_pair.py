"""One row of any supported shape -> `PreferencePair`.

Supported: standard (strings) and conversational (message lists, or a single message), explicit and implicit prompt,
several turns, system prompts, a string prompt with message lists (with or without the prompt repeated inside them), a
message-list prompt with string answers, and the transcripts of hh-rlhf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from preftune.amounts import shown
from preftune.bounds import bound, raising
from preftune.data.chat.messages import (
    Where,
    after_prompt,
    asks_otherwise,
    not_answered,
    read_text,
    read_transcript,
    split_turns,
    split_words,
    without_nulls,
)
from preftune.data.chat.tool_calls import definition
from preftune.types import Example, Message, PreferencePair, Text

_RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def to_pair(
    values: Mapping[str, Any], *, name: str, row: int, chat: bool = False, prompts: bool = False
) -> PreferencePair:
    """Brings one row into canonical form.

    Args:
        values: the row's values under their canonical names (see `columns.CANONICAL`); missing ones are left out.
        name, row: name of the dataset and number of the row, for messages.
        chat: standard rows become conversations too (the dataset has a column of system prompts).
        prompts: the dataset has a column of prompts, so a text without one is an error and not an implicit prompt.
    Raises:
        DatasetError: a value of the wrong type or out of range; the message names row, column, value and the
            correction.
    """
    where = Where(name, row)
    for column in ("chosen", "rejected"):
        if column not in values:
            found = ", ".join(repr(key) for key in values) or "nothing"
            raise where.error(column, f"missing or null (the row has: {found})", "Fill it in, or remove the row.")
    prompt = read_text(values["prompt"], "prompt", where) if "prompt" in values else None
    chosen = read_text(values["chosen"], "chosen", where)
    rejected = read_text(values["rejected"], "rejected", where)
    for column, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        check_characters(text, column, where)
    prompt, chosen, rejected = _canonical(prompt, chosen, rejected, where, prompts)
    if chat and isinstance(prompt, str):
        prompt, chosen, rejected = as_turns(prompt), as_answer(chosen), as_answer(rejected)
    if "system" in values and isinstance(prompt, list):
        prompt = with_system(values["system"], prompt, where)
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        weight=number_in(values, "weight", 1.0, where),
        margin=number_in(values, "margin", 0.0, where),
        agreement=_agreement(values, where),
        **about(values, where),
    )


def gold_of(value: Any, pair: PreferencePair, where: Where) -> Text:
    """The gold answer of a pair's row, in the form of its sides, without the prompt that it may repeat.

    Raises: DatasetError for a row without a gold answer.
    """
    if value is None:
        raise where.error("reference", "missing or null", "Fill it in, or remove the row.")
    text = read_text(value, "reference", where)
    check_characters(text, "reference", where)
    if isinstance(pair.prompt, list):
        return after_prompt(pair.prompt, as_answer(text))
    if not isinstance(text, str):
        raise where.error(
            "reference", "a list of messages, while the sides are texts", "Write all three in the same form."
        )
    whole = bool(pair.prompt) and len(text) > len(pair.prompt) and text.startswith(pair.prompt)
    return text[len(pair.prompt) :] if whole else text


def to_prompt(values: Mapping[str, Any], *, name: str, row: int, chat: bool = False) -> Example:
    """The prompt of a row without completions, read as in `to_pair`, with the same arguments and errors."""
    where = Where(name, row)
    prompt = read_text(values["prompt"], "prompt", where)
    check_characters(prompt, "prompt", where)
    if chat or isinstance(prompt, list) or read_transcript(prompt) is not None:
        prompt = as_turns(prompt)
    if "system" in values and isinstance(prompt, list):
        prompt = with_system(values["system"], prompt, where)
    return Example(prompt, **about(values, where))


def about(values: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The metadata of a row and its values for the chat template, as fields of a pair or an example."""
    return {
        "id": None if values.get("id") in (None, "") else str(values["id"]),
        "chat_template_kwargs": template_kwargs(values, where),
        "tools": tools_of(values, where),
        "row": where.row,
        "source": source_of(values.get("source")),
    }


def check_characters(text: Text | None, column: str, where: Where) -> None:
    """Rejects texts with half of a surrogate pair, which Python's strings may hold and no tokeniser accepts, and texts
    with too many characters.
    """
    for part in [text] if isinstance(text, str) else [str(turn.get("content", "")) for turn in text or ()]:
        if len(part) > bound("field"):
            raise where.error(
                column,
                f"a text of {len(part):,} characters, more than {bound('field'):,.0f}",
                f"Cut it, or remove the row; {raising('field', '1GB')}.",
            )
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise where.error(
                column,
                f"the text holds half of a surrogate pair ({part[error.start]!a}), which is not a character",
                "Correct the text, or remove the row.",
            ) from error


def source_of(value: Any) -> str | None:
    """The name of a row's source; empty if the column holds something other than a name."""
    named = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if named and value != "" else None


def _canonical(
    prompt: Text | None, chosen: Text, rejected: Text, where: Where, prompts: bool
) -> tuple[Text, Text, Text]:
    """Brings all three into the same form: strings, or turns."""
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(prompt, list):
        if prompt is None:
            turns = read_transcript(chosen), read_transcript(rejected)
            if turns[0] is None or turns[1] is None:
                if prompts:
                    raise where.error("prompt", "missing or null", "Fill it in, or remove the row.")
                return split_words(chosen, rejected)
            return split_turns([], turns[0], turns[1])
        if read_transcript(prompt) is None:
            return prompt, chosen, rejected
    if prompt is None and isinstance(chosen, str) != isinstance(rejected, str):
        column, other = ("chosen", "rejected") if isinstance(chosen, str) else ("rejected", "chosen")
        raise where.error(
            column,
            f"text, while {other!r} is a list of messages, and without a prompt it is unknown where the answer begins",
            "Write both sides in the same form, or add a prompt.",
        )
    asked, better = as_turns(prompt), as_answer(chosen)
    not_answered(asked, "chosen", better, where)  # a rejected answer may repeat what was said
    found = split_turns(asked, better, as_answer(rejected))
    if asks_otherwise(*found):
        raise where.error(
            "prompt",
            f"it ends with the question {shown(found[0][-1]['content'])}, but both sides are conversations that begin "
            f"with another turn ({shown(found[1][0]['content'])})",
            "Correct the row, or leave the column unread with --columns prompt= (columns={'prompt': None}).",
        )
    return found


def as_turns(prompt: Text | None) -> list[Message]:
    if prompt is None or isinstance(prompt, list):
        return prompt or []
    turns = read_transcript(prompt)
    if turns is None:
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    if turns[-1] == {"role": "assistant", "content": ""}:  # "...\n\nAssistant:" asks for the answer
        turns.pop()
    return turns


def as_answer(side: Text) -> list[Message]:
    if isinstance(side, list):
        return side
    return read_transcript(side) or [{"role": "assistant", "content": side.lstrip(" ")}]


def with_system(system: Any, prompt: list[Message], where: Where) -> list[Message]:
    if not isinstance(system, str):
        raise where.error("system", f"{shown(system)} is not text", "Give the system prompt as a string.")
    if not system.strip():
        return prompt
    if prompt and prompt[0]["role"] in ("system", "developer"):
        if prompt[0]["content"] != system:
            raise where.error(
                "system",
                "the prompt begins with another system turn already",
                "Keep one of the two, or leave the column unread with --columns system= (columns={'system': None}).",
            )
        return prompt
    return [{"role": "system", "content": system}, *prompt]


LARGEST = 1e9
"""The largest weight or margin: products and squares of them must fit into float32."""


def number_in(values: Mapping[str, Any], column: str, default: float, where: Where, high: float = math.inf) -> float:
    value = values.get(column)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if 0 <= number <= min(high, LARGEST):
        return number
    span = f"from 0 to {min(high, LARGEST):g}"
    raise where.error(
        column,
        f"{shown(value)} is not a number {span}",
        f"Correct it, or leave the column unread with --columns {column}= (columns={{{column!r}: None}}).",
    )


def _agreement(values: Mapping[str, Any], where: Where) -> float | None:
    if values.get("agreement") in (None, ""):
        return None
    return number_in(values, "agreement", 0.0, where, high=1.0)


def template_kwargs(values: Mapping[str, Any], where: Where) -> dict[str, Any]:
    column = "chat_template_kwargs"
    kwargs = _from_json(values.get(column), column, where)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise where.error(column, f"{shown(kwargs)} is not an object", 'Write it like {"enable_thinking": false}.')
    kwargs = without_nulls(kwargs)
    reserved = _RESERVED_KWARGS & set(kwargs)
    if reserved:
        raise where.error(column, f"{min(reserved)!r} is set by preftune itself", "Remove it.")
    return kwargs


def tools_of(values: Mapping[str, Any], where: Where) -> list[Any] | None:
    tools = _from_json(values.get("tools"), "tools", where)
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise where.error("tools", f"{shown(tools)} is not a list", "Give a list of JSON schemas, or null.")
    return [definition(without_nulls(tool)) if isinstance(tool, Mapping) else tool for tool in tools] or None


def _from_json(value: Any, column: str, where: Where) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise where.error(column, f"{shown(value)} is not valid JSON ({error})", "Correct it, or give null.") from error
