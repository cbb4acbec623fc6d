"""Means over clusters of unequal size: the two estimates of the variance by hand, and how often intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.errors import RequestError
from preftune.judges.people.agreement import _few_clusters, _kappa, _kappa_influence, _kappa_of
from preftune.statistics.bradley_terry import Game, bradley_terry
from preftune.statistics.clusters import clustered, quantile
from preftune.statistics.intervals import mean_interval, paired_shares, win_rate
from preftune.statistics.length_control import length_controlled


def sizes(pattern: str, prompts: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of comparisons: four each, one and twenty in turn, or one or twenty by chance."""
    if pattern == "equal":
        return np.full(prompts, 4)
    if pattern == "in turn":
        return np.where(np.arange(prompts) % 2 == 1, 20, 1)
    return rng.choice([1, 1, 1, 20], prompts)


def drawn(
    rng: np.random.Generator, pattern: str, prompts: int, rate: float, ties: float, alike: float
) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and their prompts. `alike` is the correlation within a prompt: each has its own rates, from a Dirichlet
    distribution, and at 1 a single outcome.
    """
    place = np.repeat(np.arange(prompts), sizes(pattern, prompts, rng))
    shares = np.array([1 - rate - ties / 2, ties, rate - ties / 2])
    own = np.tile(shares, (prompts, 1))
    if alike == 1:
        own = rng.multinomial(1, shares, prompts).astype(float)
    elif alike:
        own = rng.dirichlet(np.maximum(shares * (1 - alike) / alike, 1e-9), prompts)
    upper = own.cumsum(axis=1)[place]
    at = rng.random(len(place))
    return (at > upper[:, 0]) / 2 + (at > upper[:, 1]) / 2, place


def test_the_robust_variance_and_its_freedom_are_those_of_the_matrices() -> None:
    """CR2 and Satterthwaite's degrees of freedom from the full matrices, for clusters of 1, 3 and 6 values."""
    counts = np.array([1.0, 3.0, 6.0])
    values = np.array([0.0, 1, 0, 1, 1, 0, 1, 0.5, 1, 1])
    found = clustered(values, np.repeat([0, 1, 2], [1, 3, 6]).tolist())._robust()
    share = counts / 10
    of_residuals = np.eye(3) - np.outer(share, np.ones(3))  # what residual sums are of the clusters' sums
    covariance = of_residuals @ np.diag(share) @ of_residuals.T
    weights = np.diag(share / np.diag(covariance))
    sums = np.array([values[:1].sum(), values[1:4].sum(), values[4:].sum()])
    residuals = (sums - values.mean() * counts) / 10
    assert found.variance == pytest.approx(residuals @ weights @ residuals)
    product = weights @ covariance
    assert found.freedom == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))
    assert 1 < found.freedom < 2


def test_the_variance_of_exchangeable_clusters_by_hand() -> None:
    data = clustered(np.array([1.0, 0, 1, 1, 0]), ["a", "b", "b", "b", "b"])
    # means 1 and 1/2, between them 1/8; within b 4 * 1/4 over 5 - 2 values; mean of 1/size 5/8; shares 1/5 and 4/5
    within = 1 / 3
    variance = (1 / 25 + 16 / 25) * (1 / 8 - within * 5 / 8) + within / 5
    assert data._exchangeable() == (pytest.approx(max(0.0, variance)), 1.0)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_clusters_of_equal_size_have_the_usual_interval(size: int) -> None:
    values = np.random.default_rng(size).normal(size=(9, size))
    found = clustered(values.ravel(), np.repeat(np.arange(9), size).tolist()).uncertainty(0.95)
    assert found == (pytest.approx(values.mean(axis=1).var(ddof=1) / 9), pytest.approx(8.0))


def test_one_large_prompt_is_not_a_sample() -> None:
    """The interval of 1 and of 20 values is that of two prompts, however much the 20 agree."""
    found = win_rate([0.0] + [1.0] * 20, [0] + [1] * 20)
    assert found.ci_low < 0.1
    assert found.ci_high > 0.99
    # all large prompts agree by chance: the small ones tell that rates differ (0.78 before, near 1)
    lucky = win_rate([1.0] * 100 + [1, 1, 1, 0, 0], [*np.repeat(np.arange(5), 20), 5, 6, 7, 8, 9])
    assert lucky.ci_low < 0.6
    with pytest.raises(RequestError, match="confidence"):
        quantile(1.5, 3)


@pytest.mark.parametrize(
    ("pattern", "prompts"),
    [("equal", 2), ("equal", 10), ("in turn", 2), ("in turn", 5), ("in turn", 10), ("in turn", 20), ("by chance", 20)],
)
def test_95_of_100_intervals_of_few_prompts_hold_the_rate(pattern: str, prompts: int) -> None:
    """300 evaluations in each of 12 cells. Without the corrections uneven sizes give 0.60 to 0.93 in the worst cell."""
    held = []
    for rate, ties in ((0.5, 0.0), (0.5, 0.4), (0.8, 0.0), (0.8, 0.3)):
        for alike in (0.0, 0.3, 1.0):
            rng = np.random.default_rng(prompts)
            draws = [drawn(rng, pattern, prompts, rate, ties, alike) for _ in range(300)]
            found = [win_rate(outcomes, place.tolist()) for outcomes, place in draws]
            held.append(np.mean([one.ci_low <= rate <= one.ci_high for one in found]))
    assert min(held) >= 0.92  # 95% less two standard errors of 300 evaluations, 1.3% each
    assert np.mean(held) >= 0.95
    if prompts >= 10:  # few clusters cost width, and more of them give it back
        assert np.mean(held) <= (0.97 if pattern == "equal" else 0.99)


@pytest.mark.parametrize(("alike", "widest"), [(0.0, 1.25), (0.5, 1.1)])
def test_with_many_prompts_the_correction_is_small(alike: float, widest: float) -> None:
    rng = np.random.default_rng(3)
    held, wider = [], []
    for _ in range(300):
        outcomes, place = drawn(rng, "in turn", 80, 0.5, 0.2, alike)
        found = win_rate(outcomes, place.tolist())
        held.append(found.ci_low <= 0.5 <= found.ci_high)
        residual = np.bincount(place, weights=outcomes - outcomes.mean())
        plain = math.sqrt(float(np.square(residual).sum()) * 80 / 79) / len(outcomes)
        wider.append(found.spread / math.sqrt(80) / plain)
    assert 0.93 <= np.mean(held) <= 0.98
    assert 1 <= np.mean(wider) < widest


@pytest.mark.parametrize("prompts", [3, 5, 20])
@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_differences_and_means_hold_too(prompts: int, alike: float) -> None:
    """Paired shares (0.65 without the corrections) and means of numbers without a range (0.44)."""
    rng = np.random.default_rng(prompts)
    shares, means = [], []
    for _ in range(300):
        outcomes, place = drawn(rng, "in turn", prompts, 0.65, 0.5, alike)
        change = paired_shares(outcomes == 0, outcomes == 1, place.tolist())
        shares.append(change.low <= 0.3 <= change.high)
        noise = math.sqrt(alike) * rng.normal(size=prompts)[place] + math.sqrt(1 - alike) * rng.normal(size=len(place))
        mean = mean_interval(noise, place.tolist())
        means.append(mean.low <= 0 <= mean.high)
    assert np.mean(shares) >= 0.92
    assert np.mean(means) >= 0.92


def test_scores_rates_at_equal_length_and_kappa_hold_too() -> None:
    """Bradley-Terry scores, rates at equal length and kappa (its truth is 0.4), of five prompts with 1 or 20 rows.

    Without the corrections 0.48 of the scores and 0.45 of the rates at equal length were held."""
    rng = np.random.default_rng(8)
    scores, rates, kappas = [], [], []
    for _ in range(20):
        outcomes, place = drawn(rng, "in turn", 5, 0.6, 0.0, 1.0)
        score = bradley_terry([Game("a", "b", float(x), int(g)) for x, g in zip(outcomes, place, strict=True)])["a"]
        scores.append(score.ci_low <= math.log(0.6 / 0.4) / 2 <= score.ci_high)
        rate = length_controlled(outcomes, rng.normal(0.3, 1, len(outcomes)) * 100, place.tolist())
        rates.append(rate.ci_low <= 0.6 <= rate.ci_high)
        people = rng.choice([0.0, 1.0], len(place))
        right, _ = drawn(rng, "in turn", 5, 0.7, 0.0, 1.0)
        kappa = _kappa(np.where(right == 1, people, 1 - people), people, place.tolist(), 0.95, 0)
        kappas.append(kappa.ci_low <= 0.4 <= kappa.ci_high)
    assert min(np.mean(scores), np.mean(rates), np.mean(kappas)) >= 0.85  # 95% less two standard errors of 20


def test_comparisons_of_others_are_no_evidence_about_a_score() -> None:
    """Three prompts compare a with its anchor; two hundred of two other models do not narrow its interval."""
    own = [Game("a", "b", x, n) for n, x in enumerate((1.0, 1.0, 0.0))]
    others = [Game("b", "c", float(n % 2), 10 + n) for n in range(200)]
    alone, along = bradley_terry(own, anchor="b")["a"], bradley_terry([*own, *others], anchor="b")["a"]
    assert (along.ci_low, along.ci_high) == pytest.approx((alone.ci_low, alone.ci_high), abs=1e-3)


def test_the_influence_on_kappa_is_its_derivative() -> None:
    rng = np.random.default_rng(2)
    points, people = rng.choice([0.0, 0.5, 1.0], 30), rng.choice([0.0, 0.5, 1.0], 30)
    rows = np.stack([np.ones(30), points == people, points == 0.5, people == 0.5], axis=1)
    found, total = _kappa_influence(rows), rows.sum(axis=0)
    moved = (_kappa_of(total + 1e-6 * rows) - _kappa_of(total[None])) / 1e-6 * 30
    assert found == pytest.approx(moved, abs=1e-4)
    many = _few_clusters(rng.normal(size=2000), range(2000), 0.95)
    assert many == pytest.approx(1, abs=2e-3)
