"""Win rates over prompts and training seeds: intervals hold the rate of a method, not only of the models it gave."""

from __future__ import annotations

import numpy as np
import pytest

from preftune.errors import DatasetError
from preftune.statistics.intervals import win_rate
from preftune.statistics.over_seeds import win_rate_over_seeds


def simulated(seeds: int, prompts: int, of_prompts: float, of_seeds: float, *, repetitions: int = 400):
    """Shares of repetitions in which the intervals hold the true rate: over both, over prompts alone."""
    rng = np.random.default_rng(1)

    def chance(logit):
        return 1 / (1 + np.exp(-logit))

    truth = chance(of_prompts * rng.normal(size=(2000, 1)) + of_seeds * rng.normal(size=2000)).mean()
    both = alone = 0
    for _ in range(repetitions):
        logits_SP = of_prompts * rng.normal(size=prompts) + of_seeds * rng.normal(size=(seeds, 1))
        outcomes_SP = (rng.random((seeds, prompts)) < chance(logits_SP)).astype(float)
        found = win_rate_over_seeds(outcomes_SP.tolist())
        both += found.ci_low <= truth <= found.ci_high
        narrow = win_rate(outcomes_SP.ravel(), [*range(prompts)] * seeds)
        alone += narrow.ci_low <= truth <= narrow.ci_high
    return both / repetitions, alone / repetitions


@pytest.mark.parametrize(("seeds", "prompts"), [(3, 60), (5, 200)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3, 1.0])
def test_it_holds_the_rate_whether_seeds_differ_or_not(seeds, prompts, of_seeds):
    both, _ = simulated(seeds, prompts, 1.0, of_seeds)
    assert both >= 0.92


def test_an_interval_over_prompts_alone_does_not_where_seeds_differ():
    both, alone = simulated(3, 200, 1.0, 1.0)
    assert both >= 0.92
    assert alone < 0.5


def test_by_hand():
    """Two seeds, three prompts: squares of rows and columns, Satterthwaite's degrees of freedom, Wilson's interval."""
    table = [[1.0, 1.0, 0.5], [0.0, 1.0, 0.0]]
    mean = 7 / 12
    of_prompts = 2 * ((1 / 2 - mean) ** 2 + (1 - mean) ** 2 + (1 / 4 - mean) ** 2) / 2
    of_seeds = 3 * ((5 / 6 - mean) ** 2 + (1 / 3 - mean) ** 2) / 1
    assert of_seeds > of_prompts  # so the degrees of freedom are those of the seeds: 1
    variance, quantile = (of_prompts + of_seeds) / 6, 12.706204736
    size = mean * (1 - mean) / variance
    shrink = 1 + quantile**2 / size
    centre = (mean + quantile**2 / (2 * size)) / shrink
    half = quantile / shrink * (mean * (1 - mean) / size + quantile**2 / (4 * size**2)) ** 0.5
    found = win_rate_over_seeds(table)
    assert found.win_rate == pytest.approx(mean)
    assert (found.ci_low, found.ci_high) == pytest.approx((centre - half, centre + half))
    assert (found.n, found.prompts, found.wins, found.ties) == (6, 3, 3, 1)


def test_one_seed_is_the_interval_over_prompts():
    outcomes = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert win_rate_over_seeds([outcomes]) == win_rate(outcomes)


def test_equal_outcomes_everywhere_have_an_interval_with_a_width():
    found = win_rate_over_seeds([[1.0] * 6] * 3)
    assert found.ci_low < found.ci_high == 1.0


def test_verdicts_that_could_not_be_read_widen_it_to_both_sides():
    table = [[1.0, 0.5, 0.0, 1.0], [1.0, 0.5, 0.0, 0.0]]
    unread = [[False, True, False, False], [False, True, False, False]]
    wide, narrow = win_rate_over_seeds(table, unread_SP=unread), win_rate_over_seeds(table)
    assert wide.ci_low < narrow.ci_low
    assert wide.ci_high > narrow.ci_high
    assert wide.unread == 2


def test_seeds_of_different_prompts_are_refused():
    with pytest.raises(DatasetError, match="Every seed needs an outcome for each prompt"):
        win_rate_over_seeds([[1.0, 0.0], [1.0]])
