"""How much of a text repeats itself. Pure functions over words; no model and no tokenizer.

Words are runs of letters or digits; in scripts without spaces each character is a word. Intended repetition must not
count as a fault: numbers, rulers and table lines are not counted, a list whose items end alike is shorter than the
n-gram, and a refrain returns after other words, which `looped` distinguishes from a loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

NGRAM = 8
"""Words of an n-gram that counts as a repetition. Four words, as in seq-rep-4 (Welleck et al. 2020, arXiv:1908.04319),
are often shared by the items of an ordinary list.
"""
_CHARACTERS_PER_WORD = 2
"""Factor for scripts without spaces, where every character counts as a word."""
_LONGEST_LOOP = 64
"""Maximum number of words of a segment that `looped` finds; `repeated` counts longer ones too."""
_COPIES = 3
_LEAST_LOOP = 8
"""Minimum number of words of a loop: "very, very, very" is not a loop."""
_WINDOW = 50
"""Number of words over which distinct bigrams are counted, so that length alone does not lower the value."""
_NUMBER_RUN = 40
"""Number of repetitions of the same number from which a row of numbers counts as a loop."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    "\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
"""Vowel signs and points, which belong to their word but are not letters in Python: without them a Hindi word would be
split.
"""
_LETTER = rf"(?:(?![{_UNSPACED}])[\w{_MARKS}])"
_WORD = re.compile(rf"[{_UNSPACED}]|(?![{_UNSPACED}])\w{_LETTER}*(?:['\u2019]{_LETTER}+)*")
_WORD_OR_SYMBOL = re.compile(rf"{_WORD.pattern}|([+\-*/=<>%|&^~@#$\\()\[\]{{}}])\1*")
_COUNTING = re.compile(r"\b\d+(?=[.):](?:\s|\Z))")
_ONE_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_RUN = re.compile(r"([^\s\d\-=_*#~.+|/\\()\[\]{}<>&\u00b7\u2010-\u2027\u2500-\u25ff\u3002\u30fb\u30fc])\1+", re.DOTALL)
"""One repeated character, except in rulers, dots, brackets, bars, tables and digits of a number."""
_TAG = re.compile(r"<(/?[a-zA-Z][\w:-]*)\b[^<>\n]{0,300}>")
"""Tags of markup, whose attributes are the same in every item of a list."""


def split_words(text: str) -> list[str]:
    """The case-folded words of a text; single characters in scripts without spaces."""
    return _WORD.findall(text.casefold())


def split_with_symbols(text: str) -> list[str]:
    """The words, each with the symbols of code, formulas and tables before it: `+b` is not `-b`.

    A repeated symbol (a ruler, `**`) is reduced to one, and a tag of markup to its name.
    """
    words, symbols = [], ""
    for found in _WORD_OR_SYMBOL.finditer(_TAG.sub(r"<\1>", text.casefold())):
        if found[1]:
            symbols += found[1]
        else:
            words.append(symbols + found[0])
            symbols = ""
    return words


def repeated(words: Sequence[str], *, n: int | None = None) -> float:
    """Share of words in an n-gram that occurred earlier in the text, 0..1.

    Args:
        n: length of the n-grams; default `NGRAM`, twice that for scripts without spaces.
    """
    n = _length(words) if n is None else n
    seen: set[tuple[str, ...]] = set()
    letters = [_has_letter(word) for word in words]
    marked = np.zeros(len(words), dtype=bool)
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            marked[start : start + n] = True
        elif 2 * sum(letters[start : start + n]) > n:
            seen.add(gram)
    return float(marked.mean()) if len(words) else 0.0


def looped(text: str) -> float:
    """Share of a text in segments that are repeated directly, three times or more, 0..1: the sign of a stuck model.

    Segments have 1 to 64 words. Counting numbers (the "3." of a list, "Day 3:") are ignored: a list with the same text
    under every number is a loop. Segments without a letter do not count."""
    words = split_with_symbols(_COUNTING.sub(" ", text))
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(word, len(number)) for word in words], dtype=np.int64)
    letters = np.array([_has_letter(word) for word in words], dtype=bool)
    marked = np.zeros(len(words), dtype=bool)
    for period in range(1, min(_LONGEST_LOOP, len(words) // _COPIES) + 1):
        for start, length in _runs(ids[period:] == ids[:-period]):
            whole = length + period
            if letters[start : start + whole].sum() >= _LEAST_LOOP and whole >= _COPIES * period:
                marked[start : start + whole] = True
    return float(marked.mean()) if words else 0.0


def distinct_bigrams(words: Sequence[str]) -> float:
    """Distinct-2 (Li et al. 2016, arXiv:1510.03055): distinct bigrams over bigrams, averaged over windows of 50 words.

    1 for a text without two words.
    """
    pairs = list(pairwise(words))
    if not pairs:
        return 1.0
    size = min(_WINDOW - 1, len(pairs))
    counts: dict[tuple[str, str], int] = {}
    total = windows = 0
    for place, pair in enumerate(pairs):
        counts[pair] = counts.get(pair, 0) + 1
        if place >= size:
            gone = pairs[place - size]
            counts[gone] -= 1
            if not counts[gone]:
                del counts[gone]
        if place >= size - 1:
            total += len(counts)
            windows += 1
    return total / (windows * size)


def longest_run(text: str, words: Sequence[str]) -> int:
    """The maximum number of direct repetitions of a word or character. Numbers count from 40 on."""
    runs = [(word, sum(1 for _ in group)) for word, group in groupby(words)]
    of_words = max((run for word, run in runs if _has_letter(word) or run >= _NUMBER_RUN), default=0)
    return max(of_words, max((len(found.group()) for found in _RUN.finditer(text)), default=0))


def _length(words: Sequence[str]) -> int:
    alone = sum(1 for word in words if _ONE_CHARACTER.match(word[-1]))
    return NGRAM * _CHARACTERS_PER_WORD if 2 * alone > len(words) else NGRAM


def _has_letter(word: str) -> bool:
    return any(character.isalpha() for character in word)


def _runs(matches: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The beginnings and lengths of runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], matches, [False])).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
