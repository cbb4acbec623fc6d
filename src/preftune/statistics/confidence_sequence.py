"""An interval of a win rate that stays valid however often one looks while prompts are added.

An ordinary 95% interval holds the true rate in 95% of evaluations with a number of prompts that was chosen beforehand.
If prompts are added until it excludes 50%, it is wrong far more often. A confidence sequence holds the true rate at all
numbers of prompts together, in 95% of all sequences (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random
variables by betting", JRSS-B, arXiv:2010.09686: the hedged capital process).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from preftune.statistics.clusters import Floats, number_clusters
from preftune.statistics.intervals import share

_BET = 0.5
"""The largest part of the capital that one outcome can lose."""
_HALVINGS = 40


class AnytimeInterval(NamedTuple):
    """The interval after all prompts that were seen."""

    ci_low: float
    ci_high: float
    prompts: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


def anytime_interval(
    outcomes: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    unread: Sequence[bool] | None = None,
) -> AnytimeInterval:
    """The confidence sequence of a win rate after these outcomes: all intervals so far, intersected.

    A prompt counts once, with the mean of its outcomes, in the order of its first appearance. The prompts must come in
    random order: if the rate changes along them so that every rate is excluded, the interval is 0 to 1.

    Args:
        outcomes: as for `win_rate`, and all those of an earlier look come first.
        clusters: the prompt of each outcome; default: every outcome has its own.
        unread: outcomes without a readable verdict; they are losses for the lower end, wins for the upper end.
    Raises: as `share`.
    """
    array = np.asarray(outcomes, dtype=np.float64)
    share(array, clusters, confidence=confidence)  # refuses impossible values
    index, prompts = number_clusters(array.size, clusters)
    unread_N = np.zeros(array.size, dtype=bool) if unread is None else np.asarray(unread, dtype=bool)

    def per_prompt(values: Floats) -> Floats:
        return (np.bincount(index, weights=values) / np.bincount(index)).astype(np.float64)

    low = _lower_end(per_prompt(np.where(unread_N, 0.0, array)), 1 - confidence)
    high = 1.0 - _lower_end(1.0 - per_prompt(np.where(unread_N, 1.0, array)), 1 - confidence)
    if low > high:
        low, high = 0.0, 1.0
    return AnytimeInterval(low, high, prompts, confidence)


def _lower_end(values_T: Floats, alpha: float) -> float:
    """The highest mean that a bet on higher values has refuted at some time.

    The bet against a mean m multiplies its capital by 1 + l (x - m) at every value x, with a stake l that depends on
    earlier values alone. If m is the true mean, the capital ever reaches 2 / alpha with probability alpha / 2 at most
    (Ville's inequality). It falls in m, so the end is found by bisection.
    """
    stakes_T, least = _stakes(values_T, alpha), math.log(2 / alpha)

    def refuted(mean: float) -> bool:
        bets_T = np.minimum(stakes_T, _BET / max(mean, 1e-12))
        return bool(np.cumsum(np.log1p(bets_T * (values_T - mean))).max() >= least)

    return _last(refuted)


def _last(holds: Callable[[float], bool]) -> float:
    """The largest number in [0, 1] for which something holds that holds for all smaller ones; 0 if for none."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _stakes(values_T: Floats, alpha: float) -> Floats:
    """The predictable plug-in stakes: sqrt(2 log(2 / alpha) / (variance t log(1 + t))), with the variance before t."""
    t_T = np.arange(1, len(values_T) + 1, dtype=np.float64)
    means_T = (0.5 + np.cumsum(values_T)) / (t_T + 1)
    variances_T = (0.25 + np.cumsum(np.square(values_T - means_T))) / (t_T + 1)
    before_T = np.concatenate([[0.25], variances_T[:-1]])
    stakes_T: Floats = np.sqrt(2 * math.log(2 / alpha) / (before_T * t_T * np.log1p(t_T)))
    return stakes_T
