"""Special tokens typed in a text: an answer's end is trained once, and other typed special tokens are counted.

A tokeniser turns such text into control tokens, wherever it stands. An answer that ends with the template's end-of-turn
mark would have two of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from preftune.data.chat.tool_calls import apply_template
from preftune.types import Message

_SHORTEST = 4
"""Minimum length of a special token that is searched for: "[" and "<s" occur in ordinary text."""


class EndMarks:
    """The special tokens of one tokeniser, as text."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template
        added = getattr(tokenizer, "added_tokens_decoder", {})
        found = {str(token.content) for token in added.values() if token.special}
        found |= {str(mark) for mark in getattr(tokenizer, "all_special_tokens", ())}
        self._special = tuple(sorted((mark for mark in found if mark.strip()), key=len, reverse=True))
        long = [re.escape(mark) for mark in self._special if len(mark) >= _SHORTEST]
        self._inside = re.compile("|".join(long)) if long else None

    @cached_property
    def closing(self) -> str | None:
        """The mark with which the chat template ends a turn of the assistant; None if it writes no mark."""
        turns = [{"role": "user", "content": "Anything?"}, {"role": "assistant", "content": "Anything else!"}]
        try:
            text = apply_template(self._tokenizer, turns, chat_template=self._template)
        except Exception:  # a template is a program; one that takes no question is left as it is
            return None
        after = str(text).rpartition("Anything else!")[2].lstrip()
        return next((mark for mark in self._special if after.startswith(mark)), None)

    def without(self, turns: list[Message]) -> list[Message]:
        """The turns, with the mark that the template writes removed from the ends of answers; the same list if no
        answer ends with it.
        """
        if not any(self._ends(turn) for turn in turns) or self.closing is None:
            return turns
        return [self._cut(turn, self.closing) for turn in turns]

    def _ends(self, turn: Message) -> bool:
        return turn["role"] == "assistant" and str(turn.get("content", "")).rstrip().endswith(self._special)

    def _cut(self, turn: Message, mark: str) -> Message:
        content = str(turn.get("content", ""))
        if turn["role"] != "assistant" or not content.rstrip().endswith(mark):
            return turn
        while content.rstrip().endswith(mark):
            content = content.rstrip().removesuffix(mark)
        return {**turn, "content": content}

    def inside(self, parts: Iterable[str | Sequence[Message]]) -> bool:
        """Whether a special token is typed anywhere in the texts or turns."""
        pattern = self._inside
        if pattern is None:
            return False
        texts = (text for part in parts for text in ([part] if isinstance(part, str) else _contents(part)))
        return any(pattern.search(text) for text in texts)


def _contents(turns: Sequence[Message]) -> list[str]:
    return [str(turn.get("content", "")) for turn in turns]


def closing_token(tokenizer: Any) -> int | None:
    """The token with which the chat template ends an answer; None if it writes no such token."""
    mark = EndMarks(tokenizer).closing
    return None if mark is None else int(tokenizer.convert_tokens_to_ids(mark))


def appends_eos(tokenizer: Any) -> bool:
    """Whether the tokeniser ends every plain text with eos, which is then removed from prompts."""
    probe = list(tokenizer("a")["input_ids"])
    return tokenizer.eos_token_id is not None and len(probe) > 1 and probe[-1] == tokenizer.eos_token_id
