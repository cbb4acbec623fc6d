"""Properties of one answer: repetition, variety, language, refusal. They are read from the text alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from preftune.text_quality.languages import language_of
from preftune.text_quality.refusals import is_refusal
from preftune.text_quality.repetition import (
    distinct_bigrams,
    longest_run,
    looped,
    repeated,
    split_with_symbols,
    split_words,
)

LOOP_SHARE = 0.15
"""Share of loops from which an answer counts as repetitive."""
REPEATED_SHARE = 0.5
"""Share of repeated words from which an answer counts as repetitive; a poem's refrain stays below."""
LONG_RUN = 12
"""Number of repetitions of one word or character from which an answer counts as repetitive."""
_GRAM = 3


class TextFigures(NamedTuple):
    """Figures of one answer."""

    words: int
    """Number of words; characters in scripts without spaces."""
    repeated: float
    """Share of the words in n-grams (8 words) that occurred earlier in the answer, 0..1."""
    distinct_2: float
    """Distinct bigrams over bigrams, in windows of 50 words, 0..1; 1 for a text without two words."""
    longest_run: int
    """Longest run of the same word or character."""
    empty: bool
    refusal: bool
    finished: bool | None
    """Whether the model ended the answer itself; None if unknown."""
    language: str | None
    """ISO 639-1 code; None if it cannot be recognised."""
    looped: float = 0.0
    """Share of the text in segments that are repeated directly, three times or more, 0..1."""

    @property
    def repeats(self) -> bool:
        """Whether the answer counts as repetitive."""
        return self.looped >= LOOP_SHARE or self.repeated >= REPEATED_SHARE or self.longest_run >= LONG_RUN


def look_at(text: str, *, finished: bool | None = None) -> TextFigures:
    """The figures of one answer.

    Args:
        finished: whether it ended with an end-of-sequence token and not at a length limit; None if unknown.
    """
    words = split_words(text)
    return TextFigures(
        words=len(words),
        repeated=repeated(split_with_symbols(text)),
        distinct_2=distinct_bigrams(words),
        longest_run=longest_run(text, words),
        empty=not any(character.isprintable() and not character.isspace() for character in text),
        refusal=is_refusal(text),
        finished=finished,
        language=language_of(text),
        looped=looped(text),
    )


def self_similarity(texts: Sequence[str]) -> float:
    """Similarity of the answers to different prompts, 0..1: mean cosine of their sets of word trigrams, over all pairs.

    0 for fewer than two answers. Empty answers count as equal.
    """
    return float(likeness(texts).mean()) if len(texts) > 1 else 0.0


def likeness(texts: Sequence[str]) -> NDArray[np.float64]:
    """For each text, the mean cosine with all others.

    With unit vectors v and their sum s, the mean over the others is (v.s - 1)/(n - 1): no pair is formed.
    """
    grams = [_grams(split_words(text)) for text in texts]
    total: dict[tuple[str, ...], float] = {}
    for found in grams:
        for gram in found:
            total[gram] = total.get(gram, 0.0) + 1 / math.sqrt(len(found))
    with_all = np.array([sum(total[gram] for gram in found) / math.sqrt(len(found)) for found in grams])
    return np.clip((with_all - 1) / (len(texts) - 1), 0.0, 1.0)


def _grams(words: Sequence[str]) -> set[tuple[str, ...]]:
    if len(words) < _GRAM:
        return {tuple(words)}
    return {tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)}
