"""Marks around answers in a judge's prompt, which an answer cannot close."""

from __future__ import annotations

import re


def defused(text: str, mark: str) -> str:
    """The text, in which nothing is the mark that stands around an answer: `[Answer B]` is written `(Answer B]`, and
    the heading `### Assistant B:` is written `(## Assistant B:`.

    An answer that closed its own frame could open the other one's, and have words judged that are not the other's.

    Args:
        mark: what stands in the brackets, as a pattern without regard to case.
    """
    frame = r"[\[<](?=[^\w\n]*(?:(?:the|start|end|of)[^\w\n]+)*(?:" + mark + r")\b[^\]>\n]{0,40}[\]>])"
    heading = r"^([^\S\n]*)#(?=#*[^\S\n]*(?:" + mark + r")\b[^:\n]{0,40}:)"
    return re.sub(heading, r"\1(", re.sub(frame, "(", text, flags=re.IGNORECASE), flags=re.IGNORECASE | re.MULTILINE)
