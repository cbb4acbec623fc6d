"""The compact store of token ids."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import GroupDataset
from preftune.types import Preference, TokenizedGroup

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


def spans_of(edges: list[int], ids: list[int]) -> tuple[tuple[int, int], ...]:
    """Distinct rising edges within the ids, two by two."""
    edges = sorted({edge % (len(ids) + 1) for edge in edges})
    return tuple(zip(edges[::2], edges[1::2], strict=False))


@st.composite
def completions_and_spans(draw: st.DrawFn) -> dict[str, Any]:
    completions = draw(st.lists(IDS, max_size=4))
    if draw(st.booleans()):
        return {"completions": tuple(completions)}
    spans = (spans_of(draw(st.lists(st.integers(0, 6), max_size=6)), ids) for ids in completions)
    return {"completions": tuple(completions), "scored": tuple(spans)}


def made(sides: dict[str, Any], **fields: Any) -> TokenizedGroup:
    return TokenizedGroup(**sides, **fields)


GROUPS = st.builds(
    made,
    completions_and_spans(),
    prompt_ids=IDS,
    pairs=st.lists(
        st.builds(Preference, st.integers(0, 3), st.integers(0, 3), st.floats(0, 9), st.floats(0, 9), st.none())
    ).map(tuple),
    id=st.text(max_size=3),
)


@settings(deadline=None)
@given(st.lists(GROUPS, max_size=6))
def test_groups_of_any_shape_come_back(groups: list[TokenizedGroup]) -> None:
    store = GroupDataset.from_groups(iter(groups))
    assert list(store) == groups
    assert [store[i - len(groups)] for i in range(len(groups))] == groups
    assert store.total_tokens == sum(group.tokens for group in groups)
    assert store.lengths.tolist() == [group.tokens for group in groups]
    assert store.scored_tokens == sum(sum(group.scored_lengths) for group in groups)
    assert store.pairs == sum(len(group.pairs) for group in groups)
    order = list(reversed(range(len(groups))))
    assert list(store.select(order)) == groups[::-1]
    copy = pickle.loads(pickle.dumps(store))
    assert list(copy) == groups
    assert copy.fingerprint == store.fingerprint


def test_it_is_a_map_style_dataset() -> None:
    from torch.utils.data import DataLoader

    groups = [TokenizedGroup([1, i], ([2], [3, i]), (Preference(0, 1),), id=str(i)) for i in range(5)]
    store = GroupDataset.from_groups(groups)
    batches = list(DataLoader(store, batch_size=2, collate_fn=list))
    assert [group for batch in batches for group in batch] == groups
    assert store[np.int64(3)] == groups[3]
    with pytest.raises(IndexError):
        store[5]


def test_the_fingerprint_follows_content_and_order() -> None:
    one = TokenizedGroup([1], ([2], [3]), (Preference(0, 1),))
    two = TokenizedGroup([1], ([2], [3]), (Preference(0, 1, 0.5),))
    prints = {GroupDataset.from_groups(groups).fingerprint for groups in ([one, two], [two, one], [one], [one, one])}
    assert len(prints) == 4


def test_the_fingerprint_follows_what_is_scored_and_is_as_before_where_all_is() -> None:
    whole = TokenizedGroup([1], ([2, 3], [3]), (Preference(0, 1),))
    at_length = TokenizedGroup([1], ([2, 3], [3]), (Preference(0, 1),), scored=(((0, 2),), ((0, 1),)))
    parts = [
        TokenizedGroup([1], ([2, 3], [3]), (Preference(0, 1),), scored=(((begin, begin + 1),), ())) for begin in (0, 1)
    ]
    assert at_length == whole
    assert at_length.scored == ()
    prints = [GroupDataset.from_groups([group]).fingerprint for group in (whole, at_length, *parts)]
    assert prints[0] == prints[1] == "07895aa7f53be19e8ff3b815ae3df4fc"
    assert len(set(prints)) == 3


def test_ordinary_groups_store_nothing_about_spans() -> None:
    store = GroupDataset.from_groups([TokenizedGroup([1], ([2, 3], [3]), (Preference(0, 1),))] * 100)
    assert store._scored.size == 0
    one = TokenizedGroup([1], ([2, 3], [3]), (Preference(0, 1),), scored=(((1, 2),), ()))
    assert GroupDataset.from_groups([*store, one])._scored.tolist() == [[301, 1, 2]]


@pytest.mark.parametrize(
    "scored",
    [
        (((0, 1),),),
        (((0, 1), (1, 2)), ()),
        (((1, 1),), ()),
        (((2, 3), (0, 1)), ()),
        (((0, 4),), ()),
        (((-1, 2),), ()),
    ],
)
def test_impossible_spans_are_refused(scored: Any) -> None:
    with pytest.raises(ValueError, match=r"spans|zip"):
        TokenizedGroup([1], ([2, 3, 4], [3]), (Preference(0, 1),), scored=scored)


def test_the_data_layer_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, preftune.data; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
