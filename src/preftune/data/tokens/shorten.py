"""Texts of many megabytes, of which a limit of some thousand tokens needs the ends only.

A text keeps as many characters at each end as the limit has tokens, each as long as the vocabulary's longest one. What
is left has more tokens than the limit, so the row is cut or dropped as it would have been; the first tokens of an
answer and the last ones of a prompt are those of the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from preftune.types import Example, Message, Text

_MORE = 64
"""Tokens beyond the limit that are kept, so that a token at the cut plays no part."""


@dataclass(frozen=True, slots=True)
class Shorten:
    """Takes the middle out of long texts."""

    most: int
    """Characters that are kept at each end."""

    def example(self, example: Example) -> Example:
        """The same object, where nothing is too long."""
        texts = [example.prompt or "", *example.completions]
        if not any(map(self._long, texts)):
            return example
        prompt, *completions = map(self._text, texts)
        return replace(example, prompt=None if example.prompt is None else prompt, completions=tuple(completions))

    def _long(self, text: Text) -> bool:
        if isinstance(text, str):
            return len(text) > 2 * self.most
        return any(len(str(turn.get("content", ""))) > 2 * self.most for turn in text)

    def _text(self, text: Text) -> Text:
        return self._ends(text) if isinstance(text, str) else [self._turn(turn) for turn in text]

    def _turn(self, turn: Message) -> Message:
        return {**turn, "content": self._ends(str(turn.get("content", "")))}

    def _ends(self, text: str) -> str:
        return text if len(text) <= 2 * self.most else text[: self.most] + text[-self.most :]


def shortening(tokenizer: Any, max_length: int | None) -> Shorten | None:
    """What takes out of texts what `max_length` tokens cannot need; None without a limit."""
    if max_length is None or not hasattr(tokenizer, "get_vocab"):
        return None
    longest = max(map(len, tokenizer.get_vocab()), default=1)  # in characters, or bytes where tokens are of bytes
    return Shorten((max_length + _MORE) * longest)
