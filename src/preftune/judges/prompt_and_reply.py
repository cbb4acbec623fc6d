"""The text that a chat judge gets and returns: marks around answers, and the verdict at the end of its reply."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_EMPHASIS = re.compile(r"[*`]|(?<!\w)_+|_+(?!\w)|\\(?=[^\w\s])|\\(?=boxed\b)|\\(?:text|mathrm|mathbf)\b")


def unmarked(reply: str) -> str:
    """The reply without emphasis, code marks, escapes and HTML entities: `**[[A]]**` and `[[**A**]]` read alike."""
    return html.unescape(_EMPHASIS.sub("", reply))


def final_match(pattern: re.Pattern[str], text: str, value: Callable[[re.Match[str]], T | None]) -> T | None:
    """The value of the last line with a match; None for no match, or for a line with two different values.

    A judge that reasons about both answers may name several verdicts before its own; the last one counts. Two on one
    line ("A or B") are no verdict.
    """
    found = [(text.count("\n", 0, match.start()), value(match)) for match in pattern.finditer(text)]
    known = [(line, said) for line, said in found if said is not None]
    said_last = [said for line, said in known if line == known[-1][0]]
    return said_last[0] if said_last and all(said == said_last[0] for said in said_last) else None


def objects_read(text: str, read: Callable[[dict[str, Any]], str]) -> str:
    """The text with every JSON object in it replaced by what `read` returns for it."""
    decoder = json.JSONDecoder()
    parts, done = [], 0
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            parts += [text[done:at], read(value)]
            done = end
        at = text.find("{", end)
    return "".join([*parts, text[done:]])


def defused(text: str, mark: str) -> str:
    """The text without the marks that enclose an answer: `[Answer B]` becomes `(Answer B]`, and the heading
    `### Assistant B:` becomes `(## Assistant B:`.

    Otherwise an answer could close its own frame, open that of the other answer, and add text to it.

    Args:
        mark: the content of the brackets, as a pattern that ignores case.
    """
    frame = r"[\[<](?=[^\w\n]*(?:(?:the|start|end|of)[^\w\n]+)*(?:" + mark + r")\b[^\]>\n]{0,40}[\]>])"
    heading = r"^([^\S\n]*)#(?=#*[^\S\n]*(?:" + mark + r")\b[^:\n]{0,40}:)"
    return re.sub(heading, r"\1(", re.sub(frame, "(", text, flags=re.IGNORECASE), flags=re.IGNORECASE | re.MULTILINE)
