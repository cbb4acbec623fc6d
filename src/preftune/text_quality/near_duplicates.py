"""Near-duplicates: MinHash signatures from `datasketch`, and the pairs of texts whose signatures agree.

A text takes 256 bytes of memory. `datasketch.MinHashLSH` would find the same candidates with hash tables of about 3 kB
per text, which is more than most texts have; sorting one column of band hashes at a time needs 8 bytes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Signatures = NDArray[np.uint32]

PERMUTATIONS = 64
THRESHOLD = 0.8
"""Minimum similarity (shared three-word shingles) of near-duplicates; estimated with an error of about 0.05."""

_BANDS = 16
"""Number of bands of 4 values each: texts of similarity 0.8 agree in one of them with probability 0.9998, of 0.3 with
0.12.
"""

_BATCH = 1000
_LONGEST = 5000
"""Maximum number of words of a text that are compared."""

_WORD = re.compile(r"\w+")


def shingles(text: str) -> list[int]:
    """32-bit hashes of all sequences of three words, without case and punctuation; of the whole text if it has fewer
    words.
    """
    words = _WORD.findall(text.casefold())[:_LONGEST]
    if len(words) < 3:
        return [zlib.crc32(" ".join(words).encode("utf-8", "surrogatepass"))]
    hashes = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
    numbers = np.asarray(hashes, dtype=np.uint32)
    mixed = (numbers[:-2] * np.uint32(0x9E3779B1)) ^ (numbers[1:-1] * np.uint32(0x85EBCA77)) ^ numbers[2:]
    found: list[int] = mixed.tolist()
    return found


def signatures(texts: Iterable[str]) -> Signatures:
    """(texts, 64) MinHash signatures."""
    from datasketch import MinHash

    made = MinHash.generator(map(shingles, texts), num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
    rows = [sketch.hashvalues for sketch in made]
    return np.asarray(rows, dtype=np.uint32).reshape(-1, PERMUTATIONS)


class Sketches:
    """Signatures of many pairs, computed a thousand at a time."""

    def __init__(self) -> None:
        self._texts: tuple[list[str], list[str], list[str]] = ([], [], [])
        self._parts: list[tuple[Signatures, Signatures, Signatures]] = []

    def add(self, prompt: str, chosen: str, rejected: str) -> None:
        """Adds a pair; if it has no prompt, its answers are used instead."""
        asked = prompt if prompt.strip() else f"{chosen}\n{rejected}"
        for texts, text in zip(self._texts, (asked, chosen, rejected), strict=True):
            texts.append(text)
        if len(self._texts[0]) == _BATCH:
            self._flush()

    def extend(self, other: Sketches) -> None:
        """Adds the pairs of another."""
        for sketches in (self, other):
            if sketches._texts[0]:
                sketches._flush()
        self._parts.extend(other._parts)

    def signatures(self) -> tuple[Signatures, Signatures, Signatures]:
        """Signatures of prompts, chosen and rejected, (n, 64) each."""
        self._flush()
        prompts, chosen, rejected = (np.concatenate(side) for side in zip(*self._parts, strict=True))
        return prompts, chosen, rejected

    def _flush(self) -> None:
        prompts, chosen, rejected = map(signatures, self._texts)
        self._parts.append((prompts, chosen, rejected))
        for texts in self._texts:
            texts.clear()


def near_pairs(
    *sides: Signatures, across: int | None = None, within: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Positions of nearly equal texts, as (first, second), each pair once.

    Args:
        sides: (n, 64) each. With several sides (chosen and rejected), all must be nearly equal.
        across: only pairs with the first below this position and the second not: between two concatenated sets.
        within: (n,) only pairs whose numbers here are equal.
    Returns: (pairs, 2). In a set of nearly equal texts, each is paired only with the first one.
    """
    found = []
    for band in _bands(sides):
        if within is not None:
            band = band * np.uint64(0x9E3779B97F4A7C15) + within.astype(np.uint64)
        met = _met(band, across)
        if within is not None:
            met = met[within[met[:, 0]] == within[met[:, 1]]]
        found.append(_agreeing(sides, met))
    return np.unique(np.concatenate(found), axis=0)


def _bands(sides: Sequence[Signatures]) -> Iterator[NDArray[np.uint64]]:
    """One 64-bit number per position and band."""
    width = PERMUTATIONS // _BANDS
    for band in range(_BANDS):
        columns = np.concatenate([side[:, band * width : (band + 1) * width] for side in sides], axis=1)
        mixed = np.zeros(len(columns), dtype=np.uint64)
        for column in columns.astype(np.uint64).T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        yield mixed


def _met(band: NDArray[np.uint64], across: int | None) -> NDArray[np.int64]:
    """Pairs of positions with equal numbers: the first position of a run with every later one."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    first = np.repeat(order[starts], np.diff(np.r_[starts, len(order)]))
    keep = first != order
    if across is not None:
        keep &= (first < across) & (order >= across)
    return np.stack([first[keep], order[keep]], axis=1)


def _agreeing(sides: Sequence[Signatures], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs whose signatures agree in 80% of their values, on every side."""
    kept = [pairs[:0]]
    for start in range(0, len(pairs), 100_000):
        part = pairs[start : start + 100_000]
        for side in sides:
            part = part[(side[part[:, 0]] == side[part[:, 1]]).mean(axis=1) >= THRESHOLD]
        kept.append(part)
    return np.concatenate(kept)


def clusters(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the cluster number of each position, if the pairs are joined."""
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for first, second in pairs.tolist():
        one, other = root(first), root(second)
        parent[max(one, other)] = min(one, other)
    return np.asarray([root(place) for place in range(count)], dtype=np.int64)


def repeated_nearly(
    keys: NDArray[np.uint64], prompts: Signatures, chosen: Signatures, rejected: Signatures
) -> NDArray[np.bool_]:
    """(n,) whether a pair nearly repeats an earlier one: nearly the same prompt, and nearly the same answers on each
    side.

    The remaining pairs hold no such repetition: leaving one out may reveal another, so the rest is compared again.

    Args:
        keys: (n,) keys of the prompts, equal for equal prompts.
        prompts, chosen, rejected: (n, 64) each.
    """
    gone = np.zeros(len(keys), dtype=np.bool_)
    while True:
        left = np.flatnonzero(~gone)
        _, first, number = np.unique(keys[left], return_index=True, return_inverse=True)
        cluster = clusters(len(first), near_pairs(prompts[left[first]]))[number]
        left = left[np.bincount(cluster)[cluster] > 1] if len(left) else left
        if len(left) < 2:
            return gone
        cluster = cluster[np.bincount(cluster)[cluster] > 1]
        again = near_pairs(chosen[left], rejected[left], within=cluster)
        if not len(again):
            return gone
        gone[left[again[:, 1]]] = True
