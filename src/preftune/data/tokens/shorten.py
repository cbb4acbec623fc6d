"""Shortens texts of many megabytes, of which a limit of some thousand tokens needs only the ends.

A text keeps at each end as many characters as the limit's number of tokens could have at most. The shortened text has
more tokens than the limit, so the row is cut or dropped as the whole text would be; the first tokens of an answer and
the last ones of a prompt are those of the whole text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from preftune.types import Example, Message, Text

_MORE = 64
"""Number of tokens beyond the limit that are kept, so that a token at the cut has no effect."""


@dataclass(frozen=True, slots=True)
class Shorten:
    """Removes the middle of long texts."""

    most: int
    """Number of characters that are kept at each end."""

    def example(self, example: Example) -> Example:
        """The example with shortened texts; the same object if no text is too long."""
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
    """The shortening for `max_length`; None without a limit."""
    if max_length is None or not hasattr(tokenizer, "get_vocab"):
        return None
    longest = max(map(len, tokenizer.get_vocab()), default=1)  # in characters, or bytes where tokens are of bytes
    return Shorten((max_length + _MORE) * longest)
