"""Rows with the same prompt as one group: nothing but repetition is lost."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import GroupDataset, group_by_prompt
from preftune.types import Preference, TokenizedGroup

IDS = st.lists(st.integers(1, 3), min_size=1, max_size=3)
NUMBER = st.sampled_from([0.0, 0.5, 1.0, 2.5])


@st.composite
def a_group(draw) -> TokenizedGroup:
    completions = tuple(draw(st.lists(IDS, min_size=1, max_size=3)))
    index = st.integers(0, len(completions) - 1)
    pairs = draw(st.lists(st.builds(Preference, index, index, NUMBER, NUMBER), max_size=3))
    several_turns = draw(st.booleans())
    return TokenizedGroup(
        draw(st.lists(st.integers(1, 2), max_size=2)),
        completions,
        tuple(pairs),
        id=draw(st.text("ab", max_size=2)),
        scored=tuple(draw(spans_in(ids)) for ids in completions) if several_turns else (),
    )


def spans_in(ids: list[int]) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """One span anywhere in the ids, or all."""
    last = len(ids)
    begin = st.integers(0, last - 1)
    return st.one_of(st.just(()), begin.flatmap(lambda at: st.integers(at + 1, last).map(lambda end: ((at, end),))))


def sides(group: TokenizedGroup) -> list[tuple[object, ...]]:
    """Each completion by what makes it what it is: its tokens, and which of them are scored."""
    return [(tuple(ids), group.spans(index)) for index, ids in enumerate(group.completions)]


DATA = st.lists(a_group(), max_size=12)
LIMIT = st.one_of(st.none(), st.integers(1, 20))


def content(groups: object) -> Counter[tuple[object, ...]]:
    """Every pair as (prompt, chosen, rejected, weight, margin), as often as it is there."""
    return Counter(
        (tuple(g.prompt_ids), sides(g)[p.chosen], sides(g)[p.rejected], p.weight, p.margin)
        for g in groups
        for p in g.pairs
    )


@settings(deadline=None)
@given(DATA, LIMIT)
def test_every_pair_stays_with_its_weight_and_margin_and_every_completion_is_still_there(groups, limit) -> None:
    merged = group_by_prompt(GroupDataset.from_groups(groups), max_group_tokens=limit)
    assert content(merged) == content(groups)
    assert {(*g.prompt_ids, 0, *side) for g in merged for side in sides(g)} == {
        (*g.prompt_ids, 0, *side) for g in groups for side in sides(g)
    }


@settings(deadline=None)
@given(DATA)
def test_without_limit_every_prompt_is_one_group_and_every_completion_is_in_it_once(groups) -> None:
    merged = list(group_by_prompt(GroupDataset.from_groups(groups)))
    assert [tuple(g.prompt_ids) for g in merged] == list(dict.fromkeys(tuple(g.prompt_ids) for g in groups))
    for group in merged:
        assert len(set(sides(group))) == len(group.completions)


@settings(deadline=None, max_examples=100)
@given(DATA, LIMIT)
def test_merging_again_changes_nothing(groups, limit) -> None:
    once = group_by_prompt(GroupDataset.from_groups(groups), max_group_tokens=limit)
    assert list(group_by_prompt(once, max_group_tokens=limit)) == list(once)


@settings(deadline=None)
@given(DATA, st.integers(1, 20))
def test_a_group_is_above_the_limit_only_if_it_came_so(groups, limit) -> None:
    for merged in group_by_prompt(GroupDataset.from_groups(groups), max_group_tokens=limit):
        inside = {tuple(c) for c in merged.completions}
        assert merged.tokens <= limit or any(
            group.prompt_ids == merged.prompt_ids and {tuple(c) for c in group.completions} == inside
            for group in groups
        )


def ultrafeedback(prompts: int, *, prompt: int = 20, completion: int = 10) -> list[TokenizedGroup]:
    """Four rated completions per prompt, every two of them a row, the rows of all prompts mixed."""
    rows = []
    for first, second in itertools.combinations(range(4), 2):
        for index in range(prompts):
            sides = ([100 + side] * completion for side in (first, second))
            rows.append(TokenizedGroup([index] * prompt, tuple(sides), (Preference(0, 1),), id=str(len(rows))))
    return rows


def test_six_pairs_of_four_completions_are_four_completions() -> None:
    rows = GroupDataset.from_groups(ultrafeedback(3))
    merged = group_by_prompt(rows)
    assert rows.total_tokens == 3 * 6 * (20 + 2 * 10)
    assert merged.total_tokens == 3 * (20 + 4 * 10)
    assert [group.id for group in merged] == ["0+5", "1+5", "2+5"]
    assert [len(group.pairs) for group in merged] == [6, 6, 6]
    assert merged.prompts == rows.prompts == 3
    assert merged.pairs == rows.pairs


def test_a_repeated_pair_counts_as_often_as_before() -> None:
    row = TokenizedGroup([1], ([2], [3]), (Preference(0, 1),), id="row")
    flipped = TokenizedGroup([1], ([3], [2]), (Preference(0, 1, 0.5),), id="flipped")
    (merged,) = group_by_prompt(GroupDataset.from_groups([row, row, flipped]))
    assert merged.completions == ([2], [3])
    assert merged.pairs == (Preference(0, 1), Preference(0, 1), Preference(1, 0, 0.5))


def test_a_long_prompt_list_is_cut_between_pairs_that_share_nothing() -> None:
    """Two stars around completions 2 and 3, their rows alternating: each star fits, both together do not."""
    rows = [TokenizedGroup([1], ([2 + i % 2], [10 + i]), (Preference(0, 1),), id=str(i)) for i in range(8)]
    parts = list(group_by_prompt(GroupDataset.from_groups(rows), max_group_tokens=8))
    assert [part.completions[0] for part in parts] == [[2], [3]]
    assert [part.id for part in parts] == ["0+3", "1+3"]
    assert [part.tokens for part in parts] == [6, 6]


def test_five_hundred_rejected_answers_to_one_chosen_become_several_groups() -> None:
    rows = [TokenizedGroup([1, 1], ([2], [3, 4, i]), (Preference(0, 1),), id=str(i)) for i in range(500)]
    parts = group_by_prompt(GroupDataset.from_groups(rows), max_group_tokens=303)
    assert parts.lengths.tolist() == [303] * 5
    assert [len(part.pairs) for part in parts] == [100] * 5
    assert all(part.completions[0] == [2] for part in parts)


def test_rows_of_different_prompts_stay_as_they_are() -> None:
    rows = [TokenizedGroup([i], ([2], [3]), (Preference(0, 1, 2.0, 0.5),), id=str(i)) for i in range(4)]
    assert list(group_by_prompt(GroupDataset.from_groups(rows))) == rows
    assert list(group_by_prompt(GroupDataset.from_groups([]))) == []


def test_a_prompt_and_a_completion_of_the_same_tokens_are_distinguished() -> None:
    rows = [
        TokenizedGroup([1], ([2], [3]), (Preference(0, 1),)),
        TokenizedGroup([2], ([1], [3]), (Preference(0, 1),)),
    ]
    assert list(group_by_prompt(GroupDataset.from_groups(rows))) == rows


def test_completions_that_differ_only_in_what_is_scored_stay_apart() -> None:
    whole = TokenizedGroup([1], ([2, 3], [4]), (Preference(0, 1),), id="whole")
    part = TokenizedGroup([1], ([2, 3], [4]), (Preference(0, 1),), id="part", scored=(((1, 2),), ()))
    (merged,) = group_by_prompt(GroupDataset.from_groups([whole, part, part]))
    assert merged.completions == ([2, 3], [4], [2, 3])
    assert merged.scored == ((), (), ((1, 2),))
    assert merged.pairs == (Preference(0, 1), Preference(2, 1), Preference(2, 1))


@pytest.mark.parametrize("shared", [True, False])
def test_work_grows_with_the_rows_and_not_with_their_square(shared, monkeypatch) -> None:
    """Counted, not timed: how often a completion's cost is looked at, for 4,000 rows of one prompt or of many."""
    from preftune.data.tokens import group_by_prompt as prompt_groups

    looked, cost = [0], prompt_groups._Merged.cost

    def counted(self, sources, lengths):
        looked[0] += len(sources)
        return cost(self, sources, lengths)

    monkeypatch.setattr(prompt_groups._Merged, "cost", counted)
    rows = [TokenizedGroup([0 if shared else i], ([i], [i, i]), (Preference(0, 1),)) for i in np.arange(4000).tolist()]
    merged = group_by_prompt(GroupDataset.from_groups(rows), max_group_tokens=31)
    assert len(merged) == (400 if shared else 4000)
    assert looked[0] <= 4 * 4000
