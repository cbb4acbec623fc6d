"""Spans as flat lists of edges, against the sets of tokens that they mean."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from preftune.data.tokens import spans

EDGES = st.lists(st.integers(0, 30), max_size=8).map(sorted).map(lambda edges: edges[: len(edges) // 2 * 2])


def tokens(edges: list[int]) -> set[int]:
    return {at for begin, end in spans.pairs(edges) for at in range(begin, end)}


@given(EDGES, st.integers(0, 30))
def test_after_and_within_cut_the_set_of_tokens(edges: list[int], at: int) -> None:
    assert tokens(spans.after(at, edges)) == {token - at for token in tokens(edges) if token >= at}
    assert tokens(spans.within(at, edges)) == {token for token in tokens(edges) if token < at}


@given(EDGES, st.integers(0, 30))
def test_what_is_left_has_neither_empty_nor_touching_spans(edges: list[int], at: int) -> None:
    kept = spans.after(at, edges)
    assert all(left < right for left, right in pairwise(kept))
    assert spans.within(31, kept) == kept
