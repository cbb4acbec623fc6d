"""What a chat template leaves out of a conversation: found by the words that its text lacks."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""The columns of a turn that hold a thought apart from its content."""

SYSTEM_PROMPT = "the system prompt"
PARTS = (SYSTEM_PROMPT, "a turn of the user", "a part of an answer", "the thought of an answer")
"""What may be left out, as messages name it."""


def unwritten(turns: Sequence[Mapping[str, Any]], text: str, trained: Container[int]) -> str:
    """The part of a conversation that the template does not write, one of `PARTS`; empty where it writes all.

    Blanks do not count, as templates strip and break lines. Of the assistant's turns those in `trained` are examined:
    templates leave thoughts out of earlier ones on purpose. Turns with calls of tools are rewritten, and pass.
    """
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
