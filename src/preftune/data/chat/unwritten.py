"""Parts of a conversation that a chat template leaves out, found by the words that are missing in its text."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""The fields of a turn that hold reasoning separately from the content."""

SYSTEM_PROMPT = "the system prompt"
PARTS = (SYSTEM_PROMPT, "a turn of the user", "a part of an answer", "the reasoning of an answer")
"""The parts that may be left out, as messages name them."""


def unwritten(turns: Sequence[Mapping[str, Any]], text: str, trained: Container[int]) -> str:
    """The part of a conversation that the template does not write, one of `PARTS`; empty if it writes everything.

    Blanks are ignored, because templates strip and break lines. Only those of the assistant's turns are checked that
    are in `trained`: templates leave reasoning out of earlier ones on purpose. Turns with tool calls are not checked,
    because templates rewrite them."""
    dense = ""
    for number, turn in enumerate(turns):
        role = turn["role"]
        if turn.get("tool_calls") or role not in _PART or (role == "assistant" and number not in trained):
            continue
        for key in ("content", *(THOUGHTS if role == "assistant" else ())):
            words = turn.get(key)
            if not isinstance(words, str) or words.strip() in text:
                continue
            dense = dense or "".join(text.split())
            if "".join(words.split()) not in dense:
                return _PART[role] if key == "content" else PARTS[3]
    return ""


_PART = {"system": PARTS[0], "developer": PARTS[0], "user": PARTS[1], "assistant": PARTS[2]}
