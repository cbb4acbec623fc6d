"""Texts of many megabytes, of which a limit of some thousand tokens needs the ends only.

A text keeps as many characters at each end as the limit has tokens, each as long as the vocabulary's longest one. What
is left has more tokens than the limit, so the row is cut or dropped as it would have been; the first tokens of an
answer and the last ones of a prompt are those of the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from preftune.types import Message, PreferencePair, Text

if TYPE_CHECKING:
    from preftune.data.formats.demonstrations import Demonstration

_MORE = 64
"""Tokens beyond the limit that are kept, so that a token at the cut plays no part."""


@dataclass(frozen=True, slots=True)
class Shorten:
    """Takes the middle out of long texts."""

    most: int
    """Characters that are kept at each end."""

    def pair(self, pair: PreferencePair) -> PreferencePair:
        """The same object, where nothing is too long."""
        if not any(map(self._long, (pair.prompt, pair.chosen, pair.rejected))):
            return pair
        prompt, chosen, rejected = map(self._text, (pair.prompt, pair.chosen, pair.rejected))
        return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)

    def demonstration(self, row: Demonstration) -> Demonstration:
        """The same object, where nothing is too long."""
        prompt = row.prompt
        if not self._long(row.completion) and (prompt is None or not self._long(prompt)):
            return row
        return replace(
            row, prompt=None if prompt is None else self._text(prompt), completion=self._text(row.completion)
        )

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
