"""Where the assistant's turns are in a rendered conversation: spans of characters, exact or none at all.

A chat template is a program, and says nothing about which part of its text came from which turn. It is asked in the
order in which it can be trusted:

1. `{% generation %}` marks, which name the assistant's turns, if there is one for every turn.
2. The beginning of the conversation alone. What the first turns are rendered as, with the header of the next answer, is
   what the whole text begins with; so an answer is between two such beginnings.
3. Templates that render a turn differently once others follow (think blocks that are dropped) break that. Then the
   answer is replaced by a word that occurs nowhere else: what is before that word, and what follows the turn, must be
   parts of the whole text.

What is found is checked against the whole text. A turn that cannot be found is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from preftune.data.tokens import spans
from preftune.types import Message, Span

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Renderer(Protocol):
    """Text of some turns by the chat template."""

    def __call__(self, messages: list[Message], *, answer: bool = False) -> str:
        """`answer`: with the header of an answer that is to follow. Raises whatever the template raises."""


def has_marks(template: str) -> bool:
    """Whether a chat template marks what the assistant says."""
    return _MARKS.search(template) is not None


def answers_by_marks(marked: Sequence[Span], messages: Sequence[Message]) -> dict[int, Span] | None:
    """The turns of the assistant by number, where a template marks every one of them; None where it does not.

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
    """The turns with what follows the last of them in the text (an end-of-turn mark, a line break), where that follows
    the others too: what a single answer of a preference is.
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
    """The turns of the assistant by number; None if one of them cannot be found.

    Args:
        text: the whole conversation as it is rendered.
        messages: the whole conversation; it ends with an answer.
        wanted: numbers of the turns to find, rising.
        first: the turn before which the prompt's text is; its beginning is not searched and given as 0. None if
            the prompt is no such text.
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
    """Whether a whole text lacks something that its prompt has when rendered alone, other than an answer's header.

    Templates that write tools or the system turn into the last question take them away once an answer or another
    question follows.

    Args:
        texts: whole conversations as they are rendered.
        asked: the prompt rendered alone, with the header of the answer or what it begins with.
        before: the turns of the prompt before the answer.
    """
    if not before or all(text.startswith(asked) for text in texts):  # nearly always
        return False
    turns = _attempt(render, before)
    return turns is None or not all(text.startswith(turns) for text in (asked, *texts))


def continuation(text: str, messages: Sequence[Message], turn: int, render: Renderer, *, begun: str) -> int | None:
    """Where an answer continues that the prompt starts with the words `begun`; None if it cannot be found."""
    around = _around(text, messages, turn, render, begun=begun)
    return None if around is None else around[0]


def _begin(text: str, messages: Sequence[Message], turn: int, render: Renderer) -> int | None:
    """Where the answer begins, by the turns before it."""
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
    """Where the answer ends, by the turns up to it."""
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
    """Where the content of a turn begins (after `begun`) and the turn ends, by a word in place of the content."""
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
