"""Turns of a conversation: checks them, reads them from transcripts, and finds where two conversations diverge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.amounts import of_type, shown
from preftune.data.chat.tool_calls import CALLS, calls_of, joined_calls
from preftune.errors import DatasetError
from preftune.types import Message, Text

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "ipython"})

_OF_TOOLS = {
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function": "tool",
}
"""Other tools' names for the roles of tool calls and of their results."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    **_OF_TOOLS,
}
"""Names of the speakers in the {"from": ..., "value": ...} form."""

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_PYTHON_REPR = re.compile(r"\s*\[?\s*\{'(role|content|from|value)'\s*:")
_JSON_TURNS = re.compile(r"\s*\[?\s*\{\s*\"(role|content|from|value|tool_calls)\"\s*:")


_ANSWERED = frozenset({"chosen", "rejected", "completion", "reference"})
"""Columns of one answer each."""
_FORM = 'Write every turn as {"role": "user", "content": "..."}.'


@dataclass(frozen=True, slots=True)
class Where:
    """The place in the data that an error names."""

    name: str
    row: int

    def error(self, column: str, problem: str, fix: str) -> DatasetError:
        return DatasetError(f"{self.name} row {self.row}, column {column!r}: {problem}. {fix}")


def role_of(turn: Mapping[str, Any]) -> str:
    """The role of a turn, also in the {"from": ..., "value": ...} form."""
    role = str(turn.get("role") or turn.get("from") or "")
    return _SPEAKERS.get(role.lower(), role)


def read_text(value: Any, column: str, where: Where) -> str | list[Message]:
    """A text unchanged, or the turns of a list of messages, of a single message, or of either as JSON."""
    try:
        return _read(value, column, where)
    except RecursionError as error:
        raise where.error(column, "a value nested too deeply", "Flatten it, or remove the row.") from error


def _read(value: Any, column: str, where: Where) -> str | list[Message]:
    if isinstance(value, str):
        if _PYTHON_REPR.match(value):
            raise where.error(
                column,
                f"the messages were written as Python's repr, not as JSON: {shown(value)}",
                "Write the file with json.dumps, or as JSONL or parquet.",
            )
        if _JSON_TURNS.match(value) and (parsed := _parsed_turns(value)) is not None:
            return read_turns(parsed, column, where)
        return value
    if isinstance(value, Mapping):
        return read_turns([value], column, where)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return read_turns(value, column, where)
    raise where.error(
        column,
        f"{shown(value)} is {of_type(value)}, neither text nor a list of messages",
        'Give a string, or messages like [{"role": "assistant", "content": "..."}].',
    )


def read_turns(turns: Sequence[Any], column: str, where: Where) -> list[Message]:
    """Checked copies of messages, without the nulls that a table's schema adds, and with tool calls in one form."""
    read = [_read_turn(turn, number, column, where) for number, turn in enumerate(turns)]
    made = [_role(turn) in CALLS for turn in turns]
    return joined_calls(read, made) if any(made) else read


def _role(turn: Any) -> str:
    return str(turn.get("role") or turn.get("from") or "").lower() if isinstance(turn, Mapping) else ""


def _read_turn(turn: Any, number: int, column: str, where: Where) -> Message:
    if not isinstance(turn, Mapping):
        if isinstance(turn, str) and column in _ANSWERED:
            raise where.error(
                column,
                f"a list of texts ({shown(turn)}), which are several answers and not the turns of one",
                "Write a row for each pair of answers, with one text in each column.",
            )
        raise where.error(column, f"turn {number} is not a message but {shown(turn)}", _FORM)
    message: Message = {str(key): _without_nulls(value) for key, value in turn.items() if value is not None}
    if "role" not in message and "from" in message:
        speaker = str(message.pop("from"))
        said = message.pop("value", message.get("content"))
        message = {"role": _SPEAKERS.get(speaker.lower(), speaker), "content": said, **message}
    if "role" not in message:
        keys = ", ".join(map(repr, turn)) or "nothing"
        if turn and all(str(key).isdigit() for key in turn):
            fix = "Write a row per line; in pandas: to_json(path, orient='records', lines=True)."
            raise where.error(column, f"this row holds a whole table, written column by column ({keys})", fix)
        raise where.error(column, f"turn {number} has no 'role' (found: {keys})", _FORM)
    role = message["role"]
    role = _OF_TOOLS.get(role.lower(), role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        likely = _SPEAKERS.get(str(role).lower())
        fix = f"Write {likely!r} instead." if likely else f"Known are {', '.join(sorted(ROLES))}."
        raise where.error(column, f"turn {number} has the unknown role {shown(role)}", fix)
    message["role"] = role
    _with_calls(message, _role(turn) in CALLS, number, column, where)
    message["content"] = _content(message, number, column, where)
    return message


def _with_calls(message: Message, is_call: bool, number: int, column: str, where: Where) -> None:
    """Brings the tool calls of a turn into one form, in place."""
    given = message.pop("function_call", None)
    if is_call:
        given = message.get("content") if given is None else given
        message["content"] = ""
    if message.get("tool_calls") in ([], ""):
        del message["tool_calls"]
    if given is not None and "tool_calls" not in message:
        message["tool_calls"] = given
    if "tool_calls" in message:
        calls = calls_of(message["tool_calls"])
        if calls is None:
            raise where.error(
                column,
                f"turn {number} ({message['role']}) calls a tool with {shown(message['tool_calls'])}, which is not an "
                "object with a name and arguments",
                'Write it like {"name": "tide", "arguments": {"harbour": "Husum"}}.',
            )
        message["tool_calls"] = calls


def _content(message: Message, number: int, column: str, where: Where) -> str:
    content, role = message.get("content"), message["role"]
    if role == "tool" and isinstance(content, Mapping):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        return _joined(content, number, column, where)
    if content is None:
        if not any(value for key, value in message.items() if key not in ("role", "content")):
            raise where.error(column, f"turn {number} ({role}) has no 'content'", _FORM)
        return ""  # a turn of tool calls only; templates concatenate content
    if not isinstance(content, str):
        raise where.error(
            column,
            f"the content of turn {number} is {shown(content)}, {of_type(content)}",
            'Content is a string, or a list of parts like {"type": "text", "text": "..."}.',
        )
    return content


def _joined(parts: list[Any], number: int, column: str, where: Where) -> str:
    """Text parts as one string, which every chat template understands."""
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise where.error(
                column,
                f"turn {number} has a part of type {kind!r}, and preftune trains on text only",
                "Remove that part or that row.",
            )
        texts.append(text)
    return "".join(texts)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
    return value


def without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without keys whose value is null, at every depth."""
    return {str(key): _without_nulls(inner) for key, inner in value.items() if inner is not None}


_TURN_KEYS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
"""Keys of a message; a JSON object is a message if it has one of them."""


def _parsed_turns(text: str) -> list[Any] | None:
    """The messages in a JSON text; None for any other JSON, or for text that only starts like JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    turns = value if isinstance(value, list) else [value]
    fits = all(isinstance(turn, dict) and any(keys <= turn.keys() for keys in _TURN_KEYS) for turn in turns)
    return turns if turns and fits else None


def read_transcript(text: str) -> list[Message] | None:
    """The turns of an hh-rlhf transcript ("\\n\\nHuman: ...\\n\\nAssistant: ..."), or None for any other text."""
    if not text.startswith(("\n\nHuman:", "\n\nAssistant:")) and not (
        text.lstrip().startswith("Human:") and "\n\nAssistant:" in text
    ):
        return None
    _, *parts = _TURN.split(text)
    return [
        {"role": _SPEAKERS["human" if speaker == "Human" else "assistant"], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def common_turns(*sides: Sequence[Message]) -> int:
    """The number of turns at the start that all sides share, leaving at least one on each side; 0 for a single side."""
    if len(sides) == 1:
        return 0
    limit = min(map(len, sides)) - 1
    count = 0
    while count < limit and all(side[count] == sides[0][count] for side in sides):
        count += 1
    return count


def split_turns(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Splits conversations into prompt and completions, at turns.

    The prompt may be empty (implicit), repeated at the start of both sides, or repeated there with more (a system turn,
    a history) or fewer turns; white space around a turn makes no difference. If both sides repeat it, the completions
    start at the first turn that differs."""
    count = common_turns(chosen, rejected)
    shared = chosen[:count]
    if count:
        size = len(prompt)
        if any(_alike(prompt, shared[at : at + size]) for at in range(count - size + 1)):
            return shared, chosen[count:], rejected[count:]
        if _alike(prompt[-count:], shared):
            return prompt, chosen[count:], rejected[count:]
    return prompt, after_prompt(prompt, chosen), after_prompt(prompt, rejected)


def asks_otherwise(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> bool:
    """Whether the prompt ends with a question, and both sides are whole conversations that start with another
    question.
    """
    begins = {side[0]["role"] if len(side) > 1 else "" for side in (chosen, rejected)}
    return bool(prompt) and prompt[-1]["role"] == "user" and begins <= {"user", "system", "developer"}


def _alike(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether turns are equal except for white space around their content."""
    return len(one) == len(other) and all(
        left == right
        or (left | {"content": left["content"].strip()}) == (right | {"content": right["content"].strip()})
        for left, right in zip(one, other, strict=True)
    )


def not_answered(prompt: Sequence[Message], column: str, answer: Sequence[Message], where: Where) -> None:
    """Raises: DatasetError for a conversation that ends with the answer that is to follow it, which would be trained
    after itself.
    """
    size = min(len(prompt), len(answer))
    ends = size > 0 and prompt[-1]["role"] == "assistant" and _alike(prompt[-size:], answer[-size:])
    if ends and prompt[-1].get("content"):
        raise where.error(
            "prompt",
            f"the conversation ends with the answer {shown(answer[-1]['content'])}, which {column!r} holds too, so it "
            "would be in the prompt and be trained after itself",
            "Remove the last turn of the conversation.",
        )


def after_prompt(prompt: list[Message], turns: list[Message]) -> list[Message]:
    """A side without the prompt, if only this side repeats it."""
    repeats = bool(prompt) and len(turns) > len(prompt) and _alike(turns[: len(prompt)], prompt)
    return turns[len(prompt) :] if repeats else turns


def split_words(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Splits two texts into their common beginning as the prompt, and the rest of each; never within a word.

    One space before the completions belongs to them, as in tokenisers. Neither rest is empty.
    """
    limit = min(len(chosen), len(rejected))
    cut = 0
    while cut < limit and chosen[cut] == rejected[cut]:
        cut += 1
    while cut > 0 and not (
        _between_words(chosen, cut)
        and _between_words(rejected, cut)
        and (chosen[cut:].strip() or not chosen.strip())
        and (rejected[cut:].strip() or not rejected.strip())
    ):
        cut -= 1
    if cut > 0 and chosen[cut - 1] == " ":
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _between_words(text: str, index: int) -> bool:
    return index in (0, len(text)) or text[index - 1].isspace() or text[index].isspace()


def has_text(side: str | list[Message], marks: Iterable[str]) -> bool:
    """Whether there is something to learn: text other than white space and special tokens, or a tool call."""
    if isinstance(side, list):
        answers = (turn for turn in side if turn["role"] == "assistant")
        return any(has_text(turn.get("content", ""), marks) or turn.get("tool_calls") for turn in answers)
    if not side.strip():
        return False
    if len(side) < 200:  # text made of special tokens only is short; long texts need no second look
        for mark in marks:
            side = side.replace(mark, "")
    return bool(side.strip())


def can_continue(turn: Message) -> bool:
    return turn["role"] == "assistant" and bool(turn.get("content")) and not turn.get("tool_calls")


def joined(prompt: list[Message], side: list[Message], continues: bool) -> list[Message]:
    if not continues:
        return [*prompt, *side]
    begun = {**prompt[-1], **side[0], "content": prompt[-1]["content"] + side[0]["content"]}
    return [*prompt[:-1], begun, *side[1:]]


def text_of(text: Text) -> str:
    """Plain text; for turns their contents, with tool calls as JSON."""
    if isinstance(text, str):
        return text
    parts = []
    for turn in text:
        if turn.get("content"):
            parts.append(str(turn["content"]))
        if turn.get("tool_calls"):
            parts.append(json.dumps(turn["tool_calls"], ensure_ascii=False, default=str))
    return "\n\n".join(parts)
