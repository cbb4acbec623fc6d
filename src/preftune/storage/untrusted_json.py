"""Values from files that anyone may have written: of the requested type, or nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]
_UNDRAWABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\\x85\\u2028\\u2029\\ud800-\\udfff]")


def number(value: object) -> float | None:
    """A finite number, or None; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def text(value: object) -> str:
    """A text, or the empty one."""
    return value if isinstance(value, str) else ""


def drawable(value: Any) -> Any:
    """A chart's specification without the characters that end a line in the programs that Vega generates from it."""
    if isinstance(value, Mapping):
        return {key: drawable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [drawable(inner) for inner in value]
    return _UNDRAWABLE.sub(" ", value) if isinstance(value, str) else value


def truth(value: object) -> bool | None:
    """A boolean, or None."""
    return value if isinstance(value, bool) else None


def mapping(value: object) -> Figures:
    """An object of JSON, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """A list of JSON, or an empty one."""
    return value if isinstance(value, list) else []


def sentences(value: object) -> list[str]:
    """The texts of a list that are not empty."""
    return [line for line in items(value) if isinstance(line, str) and line.strip()]


def at(figures: object, *path: str) -> Any:
    """The value at a path of nested objects, or None."""
    for name in path:
        figures = mapping(figures).get(name)
    return figures


def prompt_text(prompt: object) -> str:
    """A prompt as one text: plain ones and single questions as they are, conversations with their roles."""
    if isinstance(prompt, str):
        return prompt
    turns = [turn for turn in items(prompt) if isinstance(turn, Mapping)]
    said = [(text(turn.get("role")), _content(turn.get("content"))) for turn in turns]
    if len(said) == 1:
        return said[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in said)


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(text(mapping(part).get("text")) for part in items(content))
