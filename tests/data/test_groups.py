"""The compact store of token ids."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data import GroupDataset
from preftune.types import Preference, TokenizedGroup

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)
GROUPS = st.builds(
    TokenizedGroup,
    prompt_ids=IDS,
    completions=st.lists(IDS, max_size=4).map(tuple),
    pairs=st.lists(st.builds(Preference, st.integers(0, 3), st.integers(0, 3), st.floats(0, 9), st.floats(0, 9))).map(
        tuple
    ),
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


def test_the_data_layer_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, preftune.data; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
