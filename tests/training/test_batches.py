from __future__ import annotations

import numpy as np

from preftune.training.batches import shortest


def test_the_shortest_rows_are_looked_for_all_over_the_data():
    lengths = np.full(1000, 50)
    lengths[[0, 999]] = 3, 2  # the ends are always looked at
    assert shortest(lengths, 2) == [0, 999]
    assert shortest(lengths, 1) == [999]
    assert len(shortest(lengths, 4)) == 4


def test_there_may_be_fewer_rows_than_asked_for():
    assert shortest(np.asarray([7, 5]), 4) == [0, 1]
    assert shortest(np.asarray([7]), 4) == [0]
