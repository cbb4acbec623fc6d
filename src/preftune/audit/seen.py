"""One pair as the checks see it: its texts, their hashes, and its tokens where a tokenizer is given."""

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
    """A pair, while its batch is examined. What a check keeps are hashes and numbers."""

    index: int
    """Its position among the pairs, which reads it again."""
    pair: PreferencePair
    prompt: str
    """The text of the prompt; the contents of its turns where it is a conversation."""
    chosen: str
    rejected: str
    prompt_key: int
    """64-bit hash of the prompt with its roles. Pairs without a prompt have a key of their own each."""
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
        """What the assistant says on the two sides, without what others say between."""
        chosen, rejected = self.pair.chosen, self.pair.rejected
        return _said(chosen, self.chosen), _said(rejected, self.rejected)

    @property
    def whole(self) -> Encoded | None:
        """Its tokens; None where a side has no tokens."""
        encoded = self.encoded
        return encoded if encoded is not None and encoded.completions and all(encoded.completions) else None

    @property
    def usable(self) -> bool:
        """Whether the pair prefers something to something else."""
        return not self.blank and self.chosen_key != self.rejected_key


def see(pair: PreferencePair, index: int) -> SeenPair:
    """Reads the texts of a pair."""
    chosen_key, rejected_key = _key(pair.chosen), _key(pair.rejected)
    prompt = text_of(pair.prompt)
    if prompt.strip():
        prompt_key = _key(pair.prompt)
    else:  # without a prompt nothing says that two pairs answer the same one
        prompt_key = xxhash.xxh3_64_intdigest(b"%d %d" % tuple(sorted((chosen_key, rejected_key))))
    return SeenPair(
        index, pair, prompt, text_of(pair.chosen), text_of(pair.rejected), prompt_key, chosen_key, rejected_key
    )


def lengths_of(seen: SeenPair, *, tokens: bool) -> tuple[int, int, int] | None:
    """Tokens (words without a tokenizer) of prompt, chosen and rejected; None where the pair has no tokens."""
    if not tokens:
        return count_words(seen.prompt), count_words(seen.chosen), count_words(seen.rejected)
    if (encoded := seen.whole) is None:
        return None
    chosen, rejected = map(len, encoded.completions)
    return len(encoded.prompt), chosen, rejected


def answer_lengths_of(seen: SeenPair, *, tokens: bool) -> tuple[int, int] | None:
    """Tokens (words without a tokenizer) of what the assistant says, and the loss scores, on the two sides.

    None where the pair has no tokens.
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
