"""A pair for the checks: its texts, their hashes, and its tokens if there is a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from preftune.data.chat.messages import text_of
from preftune.data.tokens import spans
from preftune.judges.text_matching import count_words
from preftune.types import PreferencePair, Text

if TYPE_CHECKING:
    from preftune.data.tokens.encoded import Encoded


@dataclass(slots=True)
class SeenPair:
    """A pair, which exists only while its batch is checked. Checks keep hashes and numbers of it."""

    index: int
    """Its position in the data, with which it can be read again."""
    pair: PreferencePair
    prompt: str
    """The text of the prompt; of a conversation, the contents of its turns."""
    chosen: str
    rejected: str
    prompt_key: int
    """64-bit hash of the prompt with its roles; of a pair without a prompt, a hash of its two answers."""
    chosen_key: int
    rejected_key: int
    encoded: Encoded | None = None

    @property
    def row(self) -> int:
        return self.pair.row

    @property
    def blank(self) -> bool:
        """Whether a side has no text."""
        return not (self.chosen.strip() and self.rejected.strip())

    @property
    def answers(self) -> tuple[str, str]:
        """The texts of the assistant's turns in chosen and rejected."""
        chosen, rejected = self.pair.chosen, self.pair.rejected
        return _said(chosen, self.chosen), _said(rejected, self.rejected)

    @property
    def whole(self) -> Encoded | None:
        """Its tokens; None if a side has no tokens."""
        encoded = self.encoded
        return encoded if encoded is not None and encoded.completions and all(encoded.completions) else None

    @property
    def usable(self) -> bool:
        """Whether both sides have text and differ."""
        return not self.blank and self.chosen_key != self.rejected_key


def see(pair: PreferencePair, index: int) -> SeenPair:
    """Read the texts of a pair.

    Args:
        index: its position in the data.
    """
    chosen_key, rejected_key = _key(pair.chosen), _key(pair.rejected)
    prompt = text_of(pair.prompt)
    if prompt.strip():
        prompt_key = _key(pair.prompt)
    else:  # without prompts, two pairs with other answers must not count as pairs of one prompt
        prompt_key = xxhash.xxh3_64_intdigest(b"%d %d" % tuple(sorted((chosen_key, rejected_key))))
    return SeenPair(
        index, pair, prompt, text_of(pair.chosen), text_of(pair.rejected), prompt_key, chosen_key, rejected_key
    )


def lengths_of(seen: SeenPair, *, tokens: bool) -> tuple[int, int, int] | None:
    """Numbers of tokens of prompt, chosen and rejected, or of words if not `tokens`; None if the pair has no tokens."""
    if not tokens:
        return count_words(seen.prompt), count_words(seen.chosen), count_words(seen.rejected)
    if (encoded := seen.whole) is None:
        return None
    chosen, rejected = map(len, encoded.completions)
    return len(encoded.prompt), chosen, rejected


def answer_lengths_of(seen: SeenPair, *, tokens: bool) -> tuple[int, int] | None:
    """Numbers of scored tokens of chosen and rejected, or of words of the assistant's turns if not `tokens`; None if
    the pair has no tokens.
    """
    if not tokens:
        chosen, rejected = seen.answers
        return count_words(chosen), count_words(rejected)
    if (encoded := seen.whole) is None:
        return None
    chosen_length, rejected_length = (sum(e - b for b, e in spans.pairs(edges)) for edges in encoded.scored)
    return chosen_length, rejected_length


def _said(side: Text, text: str) -> str:
    """The text of the assistant's turns of a side whose whole text is `text`."""
    if isinstance(side, str) or all(turn["role"] == "assistant" for turn in side):
        return text
    return text_of([turn for turn in side if turn["role"] == "assistant"])


def _key(text: Text) -> int:
    if isinstance(text, str):
        data = text
    elif len(text) == 1 and set(text[0]) == {"role", "content"}:
        data = f"\0{text[0]['role']}\0{text[0]['content']}"
    else:
        data = json.dumps(text, sort_keys=True, ensure_ascii=False, default=str)
    return xxhash.xxh3_64_intdigest(data.encode("utf-8", "surrogatepass"))
