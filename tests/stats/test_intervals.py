from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.two_models.correctness import sign_test
from preftune.statistics.intervals import (
    WinRate,
    mean_interval,
    more_prompts,
    paired_shares,
    sample_size,
    share,
    verdict,
    win_rate,
)


def test_sign_test_by_hand() -> None:
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(0, 6) == 2 / 64
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024, rel=1e-14)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0


def test_mean_interval_by_hand() -> None:
    # independent: sd of 1, 2, 3, 6 is sqrt(14/3), standard error sqrt(14/12), t(0.975, 3) = 3.18245
    plain = mean_interval([1, 2, 3, 6])
    assert plain.mean == 3
    assert plain.standard_error == pytest.approx(math.sqrt(14 / 12))
    assert plain.high - 3 == pytest.approx(3.18245 * math.sqrt(14 / 12), abs=1e-4)
    # two clusters, residual sums (1-3)+(2-3) = -3 and 0+3 = 3: variance 2/1 * 18 / 16
    pairs = mean_interval([1, 2, 3, 6], ["p", "p", "q", "q"])
    assert pairs.standard_error == pytest.approx(math.sqrt(18 / 8))


def test_win_rate_by_hand() -> None:
    result = win_rate([1, 1, 1, 0.5, 0])
    assert (result.win_rate, result.n, result.wins, result.ties, result.losses) == (0.7, 5, 3, 1, 1)
    # variance = 5/4 * (3*0.09 + 0.04 + 0.49) / 25 = 0.04; effective n = 0.7*0.3/0.04 = 5.25; t(4) = 2.776445
    z2, n = 2.776445**2, 5.25
    centre = (0.7 + z2 / (2 * n)) / (1 + z2 / n)
    half = 2.776445 / (1 + z2 / n) * math.sqrt(0.21 / n + z2 / (4 * n * n))
    assert result.ci_low == pytest.approx(centre - half, abs=1e-6)
    assert result.ci_high == pytest.approx(centre + half, abs=1e-6)
    assert result.spread == pytest.approx(math.sqrt(0.04 * 5))
    assert set(result.to_dict()) >= {"win_rate", "ci_low", "ci_high", "n", "wins", "ties", "losses", "prompts"}


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_equal_outcomes_still_have_a_wide_interval(outcome: float) -> None:
    few, many = win_rate([outcome] * 5), win_rate([outcome] * 500)
    assert few.ci_high - few.ci_low > 0.3
    assert 0.001 < many.ci_high - many.ci_low < 0.2
    assert few.ci_low <= outcome <= few.ci_high


@pytest.mark.parametrize("prompts", range(2, 13))
def test_few_coins_that_fall_alike_are_no_proof(prompts: int) -> None:
    """Exact, over all outcomes of fair coins: at most one evaluation of twenty excludes 50%, however few prompts."""
    excluded = {"rate": 0.0, "difference": 0.0}
    for heads in range(prompts + 1):
        up = [1.0] * heads + [0.0] * (prompts - heads)
        rate, difference = win_rate(up), paired_shares([1 - one for one in up], up)
        chance = math.comb(prompts, heads) / 2**prompts
        excluded["rate"] += chance * (not rate.ci_low <= 0.5 <= rate.ci_high)
        excluded["difference"] += chance * (not difference.low <= 0 <= difference.high)
    assert max(excluded.values()) <= 0.05


def test_it_takes_six_prompts_to_be_better() -> None:
    assert [verdict(win_rate([1.0] * n)).name for n in (4, 5, 6)] == ["undecided", "undecided", "better"]
    assert [verdict(win_rate([0.0] * n)).name for n in (4, 5, 6)] == ["undecided", "undecided", "worse"]


def test_one_prompt_says_nothing_about_others() -> None:
    result = win_rate([1] * 20, ["same"] * 20)
    assert (result.ci_low, result.ci_high, result.prompts) == (0.0, 1.0, 1)


OUTCOMES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=60)


@given(OUTCOMES, st.data())
@settings(max_examples=100, deadline=None)
def test_swapping_sides_mirrors_around_a_half(outcomes: list[float], data: st.DataObject) -> None:
    clusters = data.draw(st.lists(st.integers(0, 9), min_size=len(outcomes), max_size=len(outcomes)))
    forth = win_rate(outcomes, clusters)
    back = win_rate([1 - x for x in outcomes], clusters)
    assert back.win_rate == pytest.approx(1 - forth.win_rate)
    assert back.ci_low == pytest.approx(1 - forth.ci_high, abs=1e-9)
    assert (back.wins, back.losses) == (forth.losses, forth.wins)
    assert 0 <= forth.ci_low <= forth.win_rate <= forth.ci_high <= 1
    assert forth.ci_high - forth.ci_low > 0


@given(OUTCOMES, st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_repeating_every_prompts_rows_does_not_narrow_the_interval(outcomes, times: int) -> None:
    once = win_rate(outcomes, list(range(len(outcomes))))
    again = win_rate(outcomes * times, list(range(len(outcomes))) * times)
    assert again.prompts == once.prompts
    assert again.ci_low == pytest.approx(once.ci_low, abs=1e-9)
    assert again.ci_high == pytest.approx(once.ci_high, abs=1e-9)


@given(OUTCOMES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter(outcomes: list[float], random) -> None:
    clusters = [i % 7 for i in range(len(outcomes))]
    shuffled = list(zip(outcomes, clusters, strict=True))
    random.shuffle(shuffled)
    one = win_rate(outcomes, clusters)
    other = win_rate([o for o, _ in shuffled], [c for _, c in shuffled])
    assert one.ci_low == pytest.approx(other.ci_low, abs=1e-9)


UNEQUAL = np.repeat(np.arange(70), np.arange(70) % 4 + 1)
"""The prompt of each row: 70 prompts with one to four rows."""


def simulated(shares: tuple[float, float], *, alike: float, rows: int, seed: int) -> np.ndarray:
    """Outcomes of `rows` evaluations, shape (rows, 173); a prompt's answers are alike with chance `alike`."""
    win, tie = shares
    rng = np.random.default_rng(seed)
    outcomes = rng.choice([1.0, 0.5, 0.0], p=[win, tie, 1 - win - tie], size=(rows, len(UNEQUAL)))
    common = rng.choice([1.0, 0.5, 0.0], p=[win, tie, 1 - win - tie], size=(rows, 70))[:, UNEQUAL]
    together = (rng.random((rows, 70)) < alike)[:, UNEQUAL]
    return np.where(together, common, outcomes)


@pytest.mark.parametrize("shares", [(0.5, 0.0), (0.45, 0.3), (0.65, 0.1)], ids=["even", "ties", "better"])
def test_95_of_100_intervals_hold_the_truth(shares: tuple[float, float]) -> None:
    """2,000 simulated evaluations with ties, and prompts with unequal numbers of rows that agree more than chance."""
    truth, names = shares[0] + shares[1] / 2, UNEQUAL.tolist()
    held = [
        result.ci_low <= truth <= result.ci_high
        for row in simulated(shares, alike=0.6, rows=2000, seed=7)
        for result in [win_rate(row, names)]
    ]
    assert 0.93 <= np.mean(held) <= 0.97


@pytest.mark.parametrize("shares", [(0.9, 0.07), (0.02, 0.96), (0.97, 0.0)])
@pytest.mark.parametrize("prompts", [24, 48])
def test_the_interval_covers_the_truth_at_the_edge(shares: tuple[float, float], prompts: int) -> None:
    """Few prompts and rates near 0 or 1, where a plain t interval fails: never far below its name."""
    win, tie = shares
    draws = np.random.default_rng(7).choice([1.0, 0.5, 0.0], p=[win, tie, 1 - win - tie], size=(500, prompts))
    truth = win + tie / 2
    assert np.mean([r.ci_low <= truth <= r.ci_high for r in map(win_rate, draws)]) >= 0.92


def test_without_clusters_the_interval_would_be_too_narrow() -> None:
    rows = simulated((0.5, 0.0), alike=0.9, rows=500, seed=3)
    held = [r.ci_low <= 0.5 <= r.ci_high for r in map(win_rate, rows)]
    assert np.mean(held) < 0.85


@pytest.mark.parametrize(
    ("prompts", "gained", "lost"), [(20, 0.05, 0.02), (50, 0.04, 0.0), (20, 0.3, 0.1), (100, 0.02, 0.01)]
)
def test_a_difference_of_shares_covers_the_truth_where_hardly_any_prompt_changed(
    prompts: int, gained: float, lost: float
) -> None:
    draws = np.random.default_rng(1).choice([1.0, 0.0, -1.0], p=[gained, 1 - gained - lost, lost], size=(800, prompts))
    held = []
    for change in draws:
        found = paired_shares(np.where(change < 0, 1.0, 0.0), np.where(change > 0, 1.0, 0.0))
        held.append(found.low <= gained - lost <= found.high)
        assert found.high > found.low
    assert np.mean(held) >= 0.93


def test_sample_size_by_hand() -> None:
    # ((1.959964 + 0.841621) * 0.5 / 0.1)^2 = 196.2
    assert sample_size(0.6) == 197
    assert sample_size(0.4) == 197
    assert sample_size(0.6, spread=0.25) == 50
    assert sample_size(0.5) is None
    with pytest.raises(RequestError, match="between 0 and 1"):
        sample_size(1.5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DatasetError, match="no value"):
        win_rate([])
    with pytest.raises(DatasetError, match="between 0"):
        win_rate([1.7])
    with pytest.raises(DatasetError, match="one per value"):
        win_rate([1, 0], ["a"])
    with pytest.raises(RequestError, match="confidence"):
        win_rate([1, 0], confidence=95)
    with pytest.raises(DatasetError, match="between 0"):
        share([1.5])


def test_verdicts_that_could_not_be_read_widen_the_interval_and_decide_nothing() -> None:
    read = [1.0] * 35
    unread = [0.5] * 265
    found = win_rate([*read, *unread], unread=[False] * 35 + [True] * 265)
    assert win_rate([*read, *unread]).ci_low > 0.5  # the verdict without `unread`: "better"
    assert (found.win_rate, found.unread, found.ties) == (pytest.approx(0.5583, abs=1e-4), 265, 265)
    assert found.ci_low == win_rate([1.0] * 35 + [0.0] * 265).ci_low
    assert found.ci_high == win_rate([1.0] * 300).ci_high
    decided = verdict(found)
    assert decided.name == "undecided"
    assert "265 verdicts could not be read" in decided.sentence
    assert "more prompts would not change that" in decided.sentence
    assert more_prompts(found) is None

    few = win_rate([1.0] * 90 + [0.0] * 8 + [0.5] * 2, unread=[False] * 98 + [True] * 2)
    assert verdict(few).name == "better"
    assert win_rate(read, unread=[False] * 35) == win_rate(read)


def _result(rate: float, low: float, high: float, *, spread: float = 0.5, prompts: int = 48) -> WinRate:
    return WinRate(rate, low, high, prompts, 0, 0, 0, prompts, spread)


def test_verdicts() -> None:
    assert verdict(_result(0.70, 0.56, 0.81)).name == "better"
    assert verdict(_result(0.55, 0.501, 0.6)).name == "better"
    assert verdict(_result(0.53, 0.51, 0.55)).name == "better but below the 55% bar"
    assert verdict(_result(0.40, 0.32, 0.48)).name == "worse"
    undecided = verdict(_result(0.60, 0.45, 0.73))
    assert undecided.name == "undecided"
    assert "about 149 more prompts" in undecided.sentence  # 197 - 48
    assert "no number of further prompts" in verdict(_result(0.5, 0.4, 0.6)).sentence
    assert "ties counted half" in verdict(_result(0.70, 0.56, 0.81)).sentence
    assert more_prompts(win_rate([1, 1])) == 6  # no spread seen in two prompts: 7.85 needed at the widest spread
