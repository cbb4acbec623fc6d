"""Finds the assistant's turns in a rendered conversation: exact spans of characters, or none.

A chat template is a program, and does not report which part of its text came from which turn. Three methods are tried,
the most reliable first:

1. `{% generation %}` marks, which mark the assistant's turns, if there is one for every turn.
2. The beginning of the conversation alone. The whole text begins with the rendering of the first turns and the header
    of the next answer, so that an answer lies between two such beginnings.
3. This fails for templates that render a turn differently once others follow (they drop think blocks). Then the answer
    is replaced by a unique word: the text before that word, and the text after the turn, must be parts of the whole
    text.

Each result is checked against the whole text. A turn that cannot be found is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from preftune.data.tokens import spans
from preftune.types import Message, Span

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Renderer(Protocol):
    """Renders some turns with the chat template."""

    def __call__(self, messages: list[Message], *, answer: bool = False) -> str:
        """`answer`: add the header of a following answer. Raises: the template's errors."""


def has_marks(template: str) -> bool:
    """Whether a chat template marks the assistant's text."""
    return _MARKS.search(template) is not None


def answers_by_marks(marked: Sequence[Span], messages: Sequence[Message]) -> dict[int, Span] | None:
    """The assistant's turns by number, if a template marks every one of them; otherwise None.

    Args:
        marked: characters of the rendered text that the template marks as the assistant's.
        messages: the whole conversation.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    marked = list(marked)
    if len(marked) > len(turns):  # a turn may be marked in parts that touch (Phi-3's end of the text)
        marked = _joined(marked)
    if len(turns) != len(marked) or not all(begin < end for begin, end in marked):
        return None
    return dict(zip(turns, marked, strict=True))


def with_endings(text: str, found: Mapping[int, Span]) -> dict[int, Span]:
    """The turns, each extended by the text after the last one (an end-of-turn mark, a line break) if it follows the
    other turns too, as for a single answer of a preference.
    """
    ending = text[max(end for _, end in found.values()) :]
    return {
        turn: (begin, end + len(ending) if text.startswith(ending, end) else end)
        for turn, (begin, end) in found.items()
    }


def _joined(marked: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in marked:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def answers_by_rendering(
    text: str,
    messages: Sequence[Message],
    wanted: Sequence[int],
    render: Renderer,
    *,
    first: int | None,
    marks: Sequence[str] = (),
) -> dict[int, Span] | None:
    """The assistant's turns by number; None if one of them cannot be found.

    Args:
        text: the whole rendered conversation.
        messages: the whole conversation; it ends with an answer.
        wanted: numbers of the turns to find, ascending.
        first: the turn after the prompt's text; its beginning is not searched, and is given as 0. None if there is no
            such prompt.
        marks: the tokenizer's special tokens.
    """
    found: dict[int, Span] = {}
    for turn in wanted:
        around: Span | None = None
        begin = 0 if turn == first else _begin(text, messages, turn, render)
        end = len(text) if turn == len(messages) - 1 else _end(text, messages, turn, render, marks)
        if begin is None or end is None:
            around = _around(text, messages, turn, render)
            if around is None:
                return None
        begin = around[0] if begin is None and around else begin
        end = around[1] if end is None and around else end
        if begin is None or end is None or not begin <= end:
            return None
        found[turn] = (begin, end)
    return found


def loses_prompt(texts: Sequence[str], asked: str, before: Sequence[Message], render: Renderer) -> bool:
    """Whether a whole text lacks a part of its separately rendered prompt, other than an answer's header.

    Templates that write tools or the system turn into the last question omit them once an answer or another question
    follows.

    Args:
        texts: whole rendered conversations.
        asked: the prompt rendered separately, with the header of the answer or its given start.
        before: the turns of the prompt before the answer.
    """
    if not before or all(text.startswith(asked) for text in texts):  # nearly always
        return False
    turns = _attempt(render, before)
    return turns is None or not all(text.startswith(turns) for text in (asked, *texts))


def continuation(text: str, messages: Sequence[Message], turn: int, render: Renderer, *, begun: str) -> int | None:
    """Where an answer continues whose start `begun` is in the prompt; None if it cannot be found."""
    around = _around(text, messages, turn, render, begun=begun)
    return None if around is None else around[0]


def _begin(text: str, messages: Sequence[Message], turn: int, render: Renderer) -> int | None:
    """The beginning of the answer, from the turns before it."""
    asked = _attempt(render, messages[:turn], answer=True)
    if asked is None:
        return None
    if text.startswith(asked):
        return len(asked)
    # The header of an answer may hold more than an answer's own (an empty think block): as in prompts, the answer is
    # trained from where they part, which must be after the turns before it.
    before = _attempt(render, messages[:turn])
    shared = spans.common(asked, text)
    return shared if before is not None and text.startswith(before) and shared >= len(before) else None


def _end(text: str, messages: Sequence[Message], turn: int, render: Renderer, marks: Sequence[str]) -> int | None:
    """The end of the answer, from the turns up to it."""
    until = _attempt(render, messages[: turn + 1])
    if until is None or text.startswith(until):
        return None if until is None else len(until)
    # Some templates end the whole text with a special mark: after the end of its last turn (Phi-3), or in place of
    # the mark that ends other turns (gpt-oss).
    closing = next((mark for mark in marks if until.endswith(mark)), None)
    if closing is None or not text.startswith(until.removesuffix(closing)):
        return None
    end = len(until) - len(closing)
    if text[:end].rstrip().endswith(tuple(marks)):
        return end
    others = max((mark for mark in marks if text.startswith(mark, end)), key=len, default="")
    return end + len(others) if others else None


def _around(text: str, messages: Sequence[Message], turn: int, render: Renderer, *, begun: str = "") -> Span | None:
    """The beginning of a turn's content (after `begun`) and the end of the turn, from a rendering with a unique word in
    place of the content.
    """
    word = "Anything"
    while word in text:
        word += "Else"
    replaced = [*messages[:turn], {**messages[turn], "content": begun + word}]
    last, whole = _attempt(render, replaced), _attempt(render, [*replaced, *messages[turn + 1 :]])
    if last is None or whole is None or last.count(word) != 1 or whole.count(word) != 1:
        return None
    before, after = whole.split(word)
    ending = last.split(word)[1]
    rest = after.removeprefix(ending)
    end = len(text) - len(rest)
    exact = after.startswith(ending) and text.startswith(before) and text.endswith(rest) and len(before) <= end
    return (len(before), end) if exact else None


def _attempt(render: Renderer, messages: Sequence[Message], *, answer: bool = False) -> str | None:
    try:
        return render(list(messages), answer=answer)
    except Exception:  # a template may refuse a part of what it renders as a whole; then the part shows nothing
        return None
