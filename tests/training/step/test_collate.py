from __future__ import annotations

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from preftune.training.step.collate import WithoutRepeats, probes, shortest


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 8, 9, 16, 17, 19])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_every_row_once_in_accelerates_order(rows, ranks, split):
    size = 2 * ranks if split else 2

    def of_ranks(kind):
        inner = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
        return [kind(inner, ranks, rank, split_batches=split) for rank in range(ranks)]

    batches = [list(shard) for shard in of_ranks(WithoutRepeats)]
    assert {len(of_rank) for of_rank in batches} == {len(shard) for shard in of_ranks(WithoutRepeats)}  # all wait alike
    assert sorted(row for of_rank in batches for batch in of_rank for row in batch) == list(range(rows))
    for ours, theirs in zip(batches, map(list, of_ranks(BatchSamplerShard)), strict=True):
        assert [their[: len(our)] for our, their in zip(ours, theirs, strict=True)] == ours


def test_the_first_step_is_checked_on_the_longest_the_shortest_and_a_row_between():
    assert probes(np.asarray([5, 9, 1, 7, 3])) == [0, 1, 2]
    assert probes([4]) == [0]
    assert probes([4, 2]) == [0, 1]


def test_the_shortest_rows_are_looked_for_all_over_the_data():
    lengths = np.full(1000, 50)
    lengths[[0, 999]] = 3, 2  # the ends are always looked at
    assert shortest(lengths, 2) == [0, 999]
    assert shortest(lengths, 1) == [999]
    assert len(shortest(lengths, 4)) == 4


def test_there_may_be_fewer_rows_than_asked_for():
    assert shortest(np.asarray([7, 5]), 4) == [0, 1]
    assert shortest(np.asarray([7]), 4) == [0]
