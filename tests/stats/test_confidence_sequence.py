"""The interval that stays valid under continuous monitoring, simulated, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from preftune.errors import DatasetError, RequestError
from preftune.statistics.confidence_sequence import anytime_interval
from preftune.statistics.intervals import win_rate

SEQUENCES, PROMPTS = 400, 300


def drawn(rng: np.random.Generator, kind: str, rate: float) -> np.ndarray:
    if kind == "wins and losses":
        return (rng.random(PROMPTS) < rate).astype(np.float64)
    if kind == "ties":
        return rng.choice([0.0, 0.5, 1.0], p=[0.8 - rate, 0.4, rate - 0.2], size=PROMPTS)
    return rng.beta(2 * rate, 2 * (1 - rate), PROMPTS)


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("wins and losses", 0.5),
        ("wins and losses", 0.65),
        ("wins and losses", 0.95),
        ("ties", 0.5),
        ("probabilities", 0.6),
    ],
)
def test_it_holds_the_truth_at_all_times_together(kind: str, rate: float) -> None:
    """The last interval is the intersection of all before it, so it holds the rate only if all of them do."""
    rng = np.random.default_rng(17)
    held = []
    for _ in range(SEQUENCES):
        found = anytime_interval(drawn(rng, kind, rate))
        held.append(found.ci_low <= rate <= found.ci_high)
    assert np.mean(held) >= 0.95


def test_an_ordinary_interval_does_not() -> None:
    """Looked at after every tenth prompt, the ordinary interval once excludes 50% in more than one sequence of five."""
    rng = np.random.default_rng(17)
    wrong, wrong_at_any_time = [], []
    for _ in range(SEQUENCES):
        outcomes = drawn(rng, "wins and losses", 0.5)
        looks = [win_rate(outcomes[:size]) for size in range(20, PROMPTS + 1, 10)]
        wrong.append(any(not look.ci_low <= 0.5 <= look.ci_high for look in looks))
        last = anytime_interval(outcomes)
        wrong_at_any_time.append(not last.ci_low <= 0.5 <= last.ci_high)
    assert np.mean(wrong) > 0.2
    assert np.mean(wrong_at_any_time) <= 0.05


def test_more_prompts_only_narrow_it_and_show_what_is_there() -> None:
    outcomes = drawn(np.random.default_rng(3), "wins and losses", 0.7)
    looks = [anytime_interval(outcomes[:size]) for size in range(1, PROMPTS + 1, 7)]
    for before, after in itertools.pairwise(looks):
        assert before.ci_low <= after.ci_low <= after.ci_high <= before.ci_high
    assert looks[0].ci_low == 0.0
    assert looks[-1].ci_low > 0.5


def test_by_hand() -> None:
    """Three wins: the stakes are those of the paper, cut at half of the capital, and the capital is 2 / alpha."""
    alpha, variances = 0.5, [0.25, (0.25 + 0.25**2) / 2, (0.25 + 0.25**2 + (1 - 2.5 / 3) ** 2) / 3]
    stakes = [
        math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        for t, variance in enumerate(variances, start=1)
    ]
    low = anytime_interval([1.0, 1.0, 1.0], confidence=1 - alpha).ci_low
    capital = math.prod(1 + min(stake, 0.5 / low) * (1 - low) for stake in stakes)
    assert capital == pytest.approx(2 / alpha, rel=1e-6)


def test_swapping_the_models_mirrors_it() -> None:
    outcomes = drawn(np.random.default_rng(5), "probabilities", 0.6)
    found, swapped = anytime_interval(outcomes), anytime_interval(1 - outcomes)
    assert (1 - swapped.ci_high, 1 - swapped.ci_low) == pytest.approx((found.ci_low, found.ci_high))


def test_a_prompt_counts_once_and_unread_verdicts_widen_it() -> None:
    outcomes = [1.0] * 40
    once = anytime_interval(outcomes)
    twice = anytime_interval(outcomes * 2, [*range(40), *range(40)])
    assert twice == once
    unread = anytime_interval(outcomes, unread=[True] * 10 + [False] * 30)
    assert unread.ci_low < once.ci_low
    assert unread.ci_high == once.ci_high
    assert anytime_interval(outcomes, unread=[True] * 40)[:2] == (0.0, 1.0)


def test_a_rate_that_changes_along_the_prompts_excludes_nothing() -> None:
    assert anytime_interval([1.0] * 200 + [0.0] * 2000)[:2] == (0.0, 1.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DatasetError, match="between 0"):
        anytime_interval([1.5])
    with pytest.raises(DatasetError, match="no values"):
        anytime_interval([])
    with pytest.raises(RequestError, match="confidence"):
        anytime_interval([1.0], confidence=1.0)
