"""Tool calls in the forms in which data hold them -> the form that chat templates expect.

The result has one form, OpenAI's: an assistant's turn with `tool_calls` [{"type": "function", "function": {"name",
"arguments"}}], and turns of the role `tool` with the results. Accepted are arguments as JSON text or as objects, calls
without `function` around them, `function_call` of OpenAI's older form, and turns with a role of their own
(`function_call` of ShareGPT, `tool_call` of ms-swift) whose text is the call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preftune.data.chat.template_watch import watched
from preftune.errors import TemplateLimitError

CALLS = frozenset({"function_call", "tool_call"})
"""Roles of turns whose text is a call."""

_FUNCTION = ("name", "arguments", "parameters")


def calls_of(value: Any) -> list[dict[str, Any]] | None:
    """The calls of a turn: a list of calls, one call, or either as JSON text; None for anything else."""
    found = _from_json(value)
    listed = [found] if isinstance(found, Mapping) else found
    if not isinstance(listed, list | tuple) or not all(isinstance(call, Mapping) for call in listed):
        return None
    calls = list(map(_call, listed))
    return calls if all(isinstance(call["function"].get("name"), str) for call in calls) else None


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call.get("function")
    function = dict(inner) if isinstance(inner, Mapping) else {key: call[key] for key in call if key in _FUNCTION}
    given = function.pop("parameters", None) if "arguments" not in function else function["arguments"]
    found = {} if given is None or given == "" else _from_json(given)
    function["arguments"] = dict(found) if isinstance(found, Mapping) else given
    others = {key: value for key, value in call.items() if key not in (*_FUNCTION, "function", "type")}
    return {**others, "type": call.get("type", "function"), "function": function}


def definition(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with its name, description and parameters inside `function`, where templates look for them."""
    if isinstance(tool.get("function"), Mapping) or not isinstance(tool.get("name"), str):
        return dict(tool)
    inner = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": inner}


def joined_calls(turns: Sequence[dict[str, Any]], made: Sequence[bool]) -> list[dict[str, Any]]:
    """The turns, with calls in consecutive turns joined into one turn with several calls.

    Args:
        made: which turns had a role that stands for a call.
    """
    joined: list[dict[str, Any]] = []
    before = False
    for turn, own in zip(turns, made, strict=True):
        if own and before:
            joined[-1]["tool_calls"] = [*joined[-1]["tool_calls"], *turn["tool_calls"]]
        else:
            joined.append(turn)
        before = own
    return joined


def apply_template(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """The text of a conversation; see `rendered`. Raises: the template's errors."""
    return rendered(tokenizer, turns, **options)[0]


def rendered(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> tuple[str, str | None]:
    """The text of a conversation, and the tool of a call that is missing in it (None if all are there).

    Templates differ in the form of a call that they accept: most write its arguments with `tojson` or one by one and
    need an object, others insert them into text and need JSON; Mistral's refuse ids that do not have nine letters and
    digits. The first form is used in which every call is written as JSON.

    Raises: the template's error for the first form; TemplateLimitError, if it takes too long.
    """
    with watched():
        if not calls_in(turns):
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options)), None
        return _with_calls(tokenizer, turns, **options)


def _with_calls(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> tuple[str, str | None]:
    refusal: Exception | None = None
    partial: tuple[str, str | None] | None = None
    for form in _forms(turns):
        try:
            text = str(tokenizer.apply_chat_template(form, tokenize=False, **options))
            missing = _missing(tokenizer, form, **options)
        except TemplateLimitError:
            raise
        except Exception as error:  # a template is a program: jinja's errors, and whatever its expressions raise
            refusal = refusal or error
            continue
        if any(repr(call["function"]["arguments"]) in text for call in calls_in(turns) if _is_object(call)):
            continue
        if missing is None:
            return text, None
        partial = partial or (text, missing)
    if partial is None:
        raise refusal or ValueError("the template writes the arguments of calls as Python's repr")
    return partial


def calls_in(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All tool calls in a conversation."""
    return [call for turn in turns for call in turn.get("tool_calls") or ()]


def _is_object(call: Mapping[str, Any]) -> bool:
    arguments = call["function"]["arguments"]
    return isinstance(arguments, Mapping) and bool(arguments)


def _missing(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
    """The tool of a call that the template does not write, found by rendering with changed tool names."""
    names: dict[str, str] = {}
    marked = []
    for turn in turns:
        calls = []
        for call in turn.get("tool_calls") or ():
            word = f"anything_{len(names)}_else"
            names[word] = str(call["function"]["name"])
            calls.append({**call, "function": {**call["function"], "name": word}})
        marked.append({**turn, "tool_calls": calls} if calls else turn)
    text = str(tokenizer.apply_chat_template(marked, tokenize=False, **options))
    return next((name for word, name in names.items() if word not in text), None)


def _forms(turns: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    for with_ids in (turns, with_short_ids(turns)):
        for form in (with_ids, with_text_arguments(with_ids)):
            yield form
            yield [
                {**turn, "content": turn.get("content") or None} if turn.get("tool_calls") else turn for turn in form
            ]


def with_text_arguments(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The turns, with the arguments of calls as JSON text, as in OpenAI's API."""

    def changed(call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return [
        {**turn, "tool_calls": [changed(call) for call in turn["tool_calls"]]} if turn.get("tool_calls") else dict(turn)
        for turn in turns
    ]


def with_short_ids(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The turns, with call ids of nine letters and digits, which Mistral's templates require.

    A call without an id gets one from its position, and so does the result at the same position after it.
    """
    made: list[Mapping[str, Any]] = []
    waiting: list[str] = []
    for place, turn in enumerate(turns):
        changed = dict(turn)
        if turn.get("tool_calls"):
            calls = list(turn["tool_calls"])
            names = [str(call.get("id") or f"{place} {number}") for number, call in enumerate(calls)]
            changed["tool_calls"] = [{**call, "id": _nine(name)} for call, name in zip(calls, names, strict=True)]
            waiting = names
        elif turn.get("role") == "tool":
            name = turn.get("tool_call_id") or (waiting[0] if waiting else str(place))
            waiting = [other for other in waiting if other != name]
            changed["tool_call_id"] = _nine(str(name))
        made.append(changed)
    return made


def _nine(name: str) -> str:
    return name if len(name) == 9 and name.isalnum() else hashlib.sha256(name.encode()).hexdigest()[:9]


def _from_json(value: Any) -> Any:
    """The value of a JSON text; any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
