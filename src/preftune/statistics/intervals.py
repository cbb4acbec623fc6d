"""Win rates with their uncertainty: intervals clustered by prompt, sample sizes, and a verdict in words.

Outcomes are numbers between 0 (the aligned model lost) and 1 (it won); a tie is 0.5, a judge's probability or its share
of several votes is between. Several outcomes of one prompt
(samples, judges) are no evidence about other prompts, so the prompt is the unit of all intervals in this module
(cluster-robust standard errors: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2; with the
corrections of `clusters` for few prompts, and for prompts with unequal numbers of outcomes)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtrc

from preftune.amounts import counted
from preftune.errors import DatasetError, RequestError
from preftune.statistics.clusters import Clustered, Floats, Uncertainty, clustered, quantile
from preftune.statistics.verdict_names import BAR, BELOW_BAR, BETTER, UNDECIDED, WORSE

POWER = 0.8
"""Power of the sample sizes: the probability of showing a difference that exists."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate with its interval. Rates are shares of 1, ties count half."""

    win_rate: float
    ci_low: float
    ci_high: float
    n: int
    """Comparisons."""
    wins: int
    ties: int
    losses: int
    prompts: int
    """Number of distinct prompts, which the interval treats as independent."""
    spread: float
    """Standard deviation of the contribution of one prompt, for sample sizes."""
    confidence: float = 0.95
    unread: int = 0
    """Number of ties that are comparisons without a readable verdict. The interval holds for any outcome of them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class MeanInterval(NamedTuple):
    """A mean over clustered values with its t interval (cluster-robust)."""

    mean: float
    low: float
    high: float
    standard_error: float


class Verdict(NamedTuple):
    """The meaning of a win rate: a short name, and one sentence."""

    name: str
    sentence: str


def mean_interval(
    values: Sequence[float] | Floats, clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> MeanInterval:
    """Mean of clustered values with a t interval (`uncertainty` in the module `clusters`).

    Equal values give an interval of zero width, so this is only for quantities without a natural range (lengths,
    differences); for rates use `win_rate` or `share`."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise DatasetError("There are no values to average. Give at least one.")
    data = clustered(array, clusters)
    found = data.uncertainty(confidence)
    half = found.width(confidence) if len(data.sums_G) > 1 else math.inf
    return MeanInterval(data.mean, data.mean - half, data.mean + half, found.error)


def wilson(rate: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a rate from `size` independent trials."""
    shrink = 1 + quantile**2 / size
    centre = (rate + quantile**2 / (2 * size)) / shrink
    half = quantile / shrink * math.sqrt(rate * (1 - rate) / size + quantile**2 / (4 * size**2))
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def _closed_form(data: Clustered, found: Uncertainty, confidence: float) -> tuple[float, float]:
    """Wilson's interval at the effective sample size m(1-m)/variance (Korn and Graubard 1998), with a t quantile.

    For independent wins and losses this is Wilson's interval; ties shrink it and repeated prompts widen it through the
    variance. If all outcomes are equal, no variance can be measured, so each prompt counts as one plain trial with the
    normal quantile (no variance was estimated), and no interval has zero width. If all were won, or all lost, Wilson's
    interval is too narrow for few prompts (four coins fall alike in one of eight trials); the interval then reaches at
    least as far as the exact one (Clopper and Pearson 1934, Biometrika 26), so that it takes six to exclude 50%."""
    return _interval(data.mean, found, len(data.sums_G), confidence)


def _interval(rate: float, found: Uncertainty, prompts: int, confidence: float) -> tuple[float, float]:
    if prompts == 1:
        return 0.0, 1.0  # one prompt says nothing about others
    if found.variance > 1e-15:
        return wilson(rate, rate * (1 - rate) / found.variance, quantile(confidence, found.freedom))
    low, high = wilson(rate, float(prompts), NormalDist().inv_cdf(0.5 + confidence / 2))
    exact = (0.5 - confidence / 2) ** (1 / prompts)
    return (min(low, exact) if rate == 1 else low), (max(high, 1 - exact) if rate == 0 else high)


def share(
    values: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> MeanInterval:
    """Mean of values in [0, 1] with an interval inside [0, 1] that never has zero width.

    Args:
        clusters: one name per value; values of one name count as one observation (default: all independent).
    Raises: DatasetError if there are no values, or for values outside [0, 1]; RequestError for an impossible
        confidence.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise DatasetError("There are no values to average. Give at least one.")
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise DatasetError("Outcomes must lie between 0 (lost) and 1 (won), 0.5 for a tie; found one outside.")
    quantile(confidence, 1)  # refuses an impossible confidence
    data = clustered(array, clusters)
    found = data.uncertainty(confidence)
    low, high = _closed_form(data, found, confidence)
    return MeanInterval(data.mean, low, high, found.error)


def paired_shares(
    base: Sequence[float] | Floats,
    aligned: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> MeanInterval:
    """The difference of two shares of the same prompts, aligned minus base; values in [0, 1].

    It is the share gained minus the share lost. Each of these two shares has its Wilson interval, and both are combined
    with their correlation (Newcombe 1998, Statistics in Medicine 17:2635-2650; Zou and Donner 2008), so the interval
    never has zero width, never leaves [-1, 1], and holds if hardly any prompt changed."""
    change_N = np.asarray(aligned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    gained = share(np.maximum(change_N, 0), clusters, confidence=confidence)
    lost = share(np.maximum(-change_N, 0), clusters, confidence=confidence)
    low, high = _difference_interval(gained, lost)
    error = clustered(change_N, clusters).uncertainty(confidence).error
    return MeanInterval(float(change_N.mean()), low, high, error)


def _difference_interval(gained: MeanInterval, lost: MeanInterval) -> tuple[float, float]:
    """The interval of gained minus lost, which exclude each other: the more is gained, the less can be lost."""
    spread = (gained.mean * (1 - gained.mean), lost.mean * (1 - lost.mean))
    if min(spread) > 0:
        correlation = -gained.mean * lost.mean / math.sqrt(spread[0] * spread[1])
    else:  # where every prompt changed, what is not gained is lost
        correlation = -1.0 if 1.0 in (gained.mean, lost.mean) else 0.0

    def distance(of_gained: float, of_lost: float) -> float:
        return math.sqrt(of_gained**2 + of_lost**2 - 2 * correlation * of_gained * of_lost)

    middle = gained.mean - lost.mean
    low = middle - distance(gained.mean - gained.low, lost.high - lost.mean)
    high = middle + distance(gained.high - gained.mean, lost.mean - lost.low)
    return max(-1.0, low), min(1.0, high)


def win_rate(
    outcomes: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    unread: Sequence[bool] | None = None,
) -> WinRate:
    """Win rate of the aligned model, the mean of its outcomes, with an interval clustered by prompt.

    Args:
        outcomes: per comparison the share that the aligned model wins, 0..1; above one half it counts as a win.
        clusters: the prompt of each comparison; default: every comparison has its own.
        unread: which comparisons have no readable verdict. They count half in the rate; the lower end of the interval
            assumes that all of them were losses, the upper end that all were wins (Horowitz and Manski 2000, JASA
            95:77-84), because as ties they would make it narrower.
    """
    array = np.asarray(outcomes, dtype=np.float64)
    interval = share(array, clusters, confidence=confidence)
    low, high = interval.low, interval.high
    unread_N = np.zeros(array.size, dtype=bool) if unread is None else np.asarray(unread, dtype=bool)
    if unread_N.any():
        low = share(np.where(unread_N, 0.0, array), clusters, confidence=confidence).low
        high = share(np.where(unread_N, 1.0, array), clusters, confidence=confidence).high
    prompts = array.size if clusters is None else len(set(clusters))
    return WinRate(
        win_rate=interval.mean,
        ci_low=low,
        ci_high=high,
        n=int(array.size),
        wins=int((array > 0.5).sum()),
        ties=int((array == 0.5).sum()),
        losses=int((array < 0.5).sum()),
        prompts=prompts,
        spread=interval.standard_error * math.sqrt(prompts),
        confidence=confidence,
        unread=int(unread_N.sum()),
    )


def sample_size(rate: float, *, spread: float = 0.5, confidence: float = 0.95, power: float = POWER) -> int | None:
    """Prompts needed to show that `rate` differs from 50%, in a share `power` of repetitions.

    `n = ((z_confidence + z_power) * spread / (rate - 0.5))^2`, at least 2. None if `rate` is 50%: no number suffices.

    Args:
        spread: standard deviation of one prompt's outcome; 0.5 for wins and losses near even, less with ties.
    """
    if not 0.0 <= rate <= 1.0 or not 0.0 < power < 1.0 or not 0.0 < confidence < 1.0 or spread < 0:
        raise RequestError(
            f"sample_size needs rate, power and confidence between 0 and 1 and spread >= 0, "
            f"got rate={rate}, power={power}, confidence={confidence}, spread={spread}."
        )
    distance = abs(rate - 0.5)
    if distance < 1e-12:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z * spread / distance) ** 2 - 1e-9))


def power(rate: float, prompts: int, *, confidence: float = 0.95) -> float:
    """How often an evaluation with this many prompts shows that a true win rate is not 50%: its interval lies on the
    right side of 50%. Exact for wins and losses, one per prompt; ties and probabilities make it more often.
    """
    sample_size(rate, confidence=confidence)  # refuses impossible settings
    if prompts < 1 or rate == 0.5:
        return 0.0
    rate = max(rate, 1 - rate)
    most = range(prompts // 2 + 1, prompts + 1)  # the more are won, the higher is the interval
    least = most.start + bisect_left(most, True, key=lambda won: _won_enough(won, prompts, confidence))
    return float(bdtrc(least - 1, prompts, rate)) if least <= prompts else 0.0


def _won_enough(won: int, prompts: int, confidence: float) -> bool:
    mean = won / prompts
    variance = mean * (1 - mean) / max(1, prompts - 1)
    return _interval(mean, Uncertainty(variance, prompts - 1), prompts, confidence)[0] > 0.5


def prompts_for(rate: float, *, confidence: float = 0.95, share: float = POWER) -> int | None:
    """A number of prompts with that `power` for this rate; None if no number has: 50%.

    Close to the least one. The power does not rise steadily with the prompts: whole numbers of wins make it a sawtooth,
    so a few prompts less may reach it too, and a few more may miss it.
    """
    guess = sample_size(rate, confidence=confidence, power=share)
    if guess is None:
        return None
    low, high = 1, max(2, guess)
    while power(rate, high, confidence=confidence) < share:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(rate, middle, confidence=confidence) >= share else (middle, high)
    return high


def power_sentence(prompts: int, *, rate: float = BAR, confidence: float = 0.95) -> str:
    """What an evaluation with this many prompts can show, before it is run."""
    needed = prompts_for(rate, confidence=confidence)
    seen = power(rate, prompts, confidence=confidence)
    advice = "" if needed is None or prompts >= needed else f"; take {needed:,} to show it in {POWER:.0%}"
    shown = f"a true win rate of {rate:.0%} is shown in {seen:.0%} of evaluations"
    return f"With {counted(prompts, 'prompt')} {shown}{advice}."


def more_prompts(result: WinRate) -> int | None:
    """The number of further prompts that would show this difference, if rate, spread and the share without a readable
    verdict stay the same; None if no number would: the rate is 50%, or closer to it than the unread verdicts might move
    it.
    """
    # Equal outcomes on a few prompts have no measured spread; the widest possible one is then the honest guess.
    spread = result.spread if result.spread > 0 else 0.5
    shown = max(0.0, abs(result.win_rate - 0.5) - result.unread / (2 * result.n))
    needed = sample_size(0.5 + shown, spread=spread, confidence=result.confidence)
    return None if needed is None else max(1, needed - result.prompts)


def verdict(result: WinRate) -> Verdict:
    """The verdict in words: `better` (at least 55% and the interval excludes 50%), `better but below the 55% bar`,
    `worse` (below 50% and the interval excludes it), or `undecided`, with the number of prompts needed for a
    decision.
    """
    rate = f"{result.win_rate:.1%}"
    interval = f"{result.confidence:.0%} interval {result.ci_low:.1%} to {result.ci_high:.1%}"
    unread = (
        f"; {counted(result.unread, 'verdict')} could not be read: as losses at its lower end, as wins at its upper end"
    )
    basis = f"{interval}, ties counted half{unread if result.unread else ''}"
    measured = f"The aligned model wins {rate} of {counted(result.n, 'comparison')} ({basis})"
    if result.ci_low > 0.5:
        if result.win_rate >= BAR:
            return Verdict(BETTER, f"{measured}: it is better.")
        return Verdict(BELOW_BAR, f"{measured}: it is better, but by less than the {BAR:.0%} bar asks.")
    if result.ci_high < 0.5:
        return Verdict(WORSE, f"{measured}: it is worse than the baseline.")
    further = more_prompts(result)
    if further is None and result.unread:
        return Verdict(
            UNDECIDED,
            f"{measured}. Too many verdicts could not be read for a decision, and more prompts would not change that: "
            "obtain those verdicts first.",
        )
    if further is None:
        outlook = "at exactly 50%, no number of further prompts would show a difference."
    else:
        outlook = (
            f"if rate and spread stay as they are, about {counted(further, 'more prompt')} would show a difference "
            "four times out of five."
        )
    return Verdict(UNDECIDED, f"{measured}. These are too few prompts for a decision: {outlook}")
