from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.evaluation.labelling.pair_selection import Ranked, RankedPairs, rank, wins


@pytest.mark.parametrize(
    ("which", "pairs", "tied"),
    [
        ("best-worst", [Ranked(1, 0, 3.0)], 0),
        ("all", [Ranked(1, 2, 1.0), Ranked(1, 3, 1.0), Ranked(1, 0, 3.0), Ranked(2, 0, 2.0), Ranked(3, 0, 2.0)], 1),
        ("adjacent", [Ranked(1, 2, 1.0), Ranked(3, 0, 2.0)], 1),
    ],
)
def test_which_pairs(which, pairs: list[Ranked], tied: int) -> None:
    assert rank([1.0, 4.0, 3.0, 3.0], which=which) == RankedPairs(pairs, tied, 0)


def test_a_smallest_gap() -> None:
    assert rank([1.0, 4.0, 3.0], which="all", min_gap=2.0) == RankedPairs([Ranked(1, 0, 3.0), Ranked(2, 0, 2.0)], 0, 1)


@pytest.mark.parametrize("which", ["best-worst", "all", "adjacent"])
def test_ties_prefer_nothing(which) -> None:
    ranked = rank([2.0, 2.0, 2.0], which=which)
    assert ranked.pairs == []
    assert ranked.tied == {"best-worst": 1, "all": 3, "adjacent": 2}[which]
    assert rank([2.0], which=which) == RankedPairs([], 0, 0)


def test_wins_are_counted_with_ties_as_halves() -> None:
    assert wins(3, {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.0}) == [1.5, 0.0, 1.5]


def test_a_judge_that_goes_round_in_a_circle_prefers_nothing() -> None:
    circle = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0}
    assert wins(3, circle) == [1.0, 1.0, 1.0]
    assert rank(wins(3, circle), which="all", comparisons=circle) == RankedPairs([], 3, 0)


def test_a_pair_needs_its_own_comparison() -> None:
    """0 has more wins than 1, although 1 beat it."""
    outcomes = {(0, 1): 0.0, (0, 2): 1.0, (0, 3): 1.0, (1, 2): 0.0, (1, 3): 0.5, (2, 3): 0.5}
    scores = wins(4, outcomes)
    assert scores[0] > scores[1]
    found = rank(scores, which="all", comparisons=outcomes)
    assert all((pair.chosen, pair.rejected) != (0, 1) for pair in found.pairs)
    assert (0, 2) in {(pair.chosen, pair.rejected) for pair in found.pairs}


@given(
    st.lists(st.integers(0, 4).map(float), min_size=2, max_size=6), st.sampled_from(["best-worst", "all", "adjacent"])
)
def test_every_pair_prefers_the_higher_score(scores: list[float], which) -> None:
    ranked = rank(scores, which=which)
    assert all(scores[p.chosen] - scores[p.rejected] == p.strength > 0 for p in ranked.pairs)
    n = len(scores)
    assert len(ranked.pairs) + ranked.tied == {"best-worst": 1, "all": n * (n - 1) // 2, "adjacent": n - 1}[which]
    if which == "best-worst" and len(set(scores)) > 1:
        assert ranked.pairs[0].strength == max(scores) - min(scores)
