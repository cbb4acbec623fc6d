"""Makes preference pairs from scores of the answers to one prompt, or from comparisons between them. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal, NamedTuple, TypeAlias

Which: TypeAlias = Literal["best-worst", "all", "adjacent"]
"""The best against the worst answer; every answer against every other; every answer against the next one below."""

Comparisons: TypeAlias = Mapping[tuple[int, int], float]
"""(i, j) with i < j -> the share of the comparison that answer i wins: 1, 0.5 for a tie, 0, or a number between."""


class Ranked(NamedTuple):
    """A pair of answers, by their positions in the list."""

    chosen: int
    rejected: int
    strength: float
    """Difference of the scores, above 0."""


class RankedPairs(NamedTuple):
    """The pairs of one prompt, and the counts of answers without a pair."""

    pairs: list[Ranked]
    tied: int
    close: int
    """Number of differences above 0 and below the requested minimum."""


def wins(answers: int, comparisons: Comparisons) -> list[float]:
    """How many comparisons each of `answers` answers won, a tie as half of one (Copeland's score)."""
    won = [0.0] * answers
    for (i, j), outcome in comparisons.items():
        won[i] += outcome
        won[j] += 1.0 - outcome
    return won


def rank(
    scores: Sequence[float], *, which: Which, min_gap: float = 0.0, comparisons: Comparisons | None = None
) -> RankedPairs:
    """Pairs of one prompt's answers.

    Args:
        scores: higher is better.
        which: see `Which`. Of answers with the same score the earlier one stands first.
        min_gap: smallest difference of scores that makes a pair; any above 0 by default.
        comparisons: where the scores are wins. Then the direct comparison of a pair must agree: if the judge is not
            transitive (a over b over c over a), the sums alone could state a preference that the judge did not.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    wanted: list[tuple[int, int]] = list(combinations(order, 2))
    if which == "adjacent":
        wanted = list(pairwise(order))
    elif which == "best-worst":
        wanted = [(order[0], order[-1])] if len(order) > 1 else []
    found: list[Ranked] = []
    tied = close = 0
    for better, worse in wanted:
        strength = scores[better] - scores[worse]
        if strength <= 0 or (comparisons is not None and not _won(comparisons, better, worse)):
            tied += 1
        elif strength < min_gap:
            close += 1
        else:
            found.append(Ranked(better, worse, strength))
    return RankedPairs(found, tied, close)


def _won(comparisons: Comparisons, i: int, j: int) -> bool:
    return comparisons[i, j] > 0.5 if i < j else comparisons[j, i] < 0.5
