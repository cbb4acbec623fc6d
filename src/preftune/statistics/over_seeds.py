"""Win rates of methods instead of single trainings: prompts and training seeds are both samples.

Every seed's model answers the same prompts, so outcomes form a table of prompts and seeds with an effect of each
(crossed random effects without replication). The variance of the grand mean is at most `(MS_prompts + MS_seeds) / (P
S)`; its degrees of freedom are Satterthwaite's (1946, Biometrics Bulletin 2), or those of the seeds if these differ
more than the prompts; the interval is Wilson's at the resulting effective sample size, as for one seed. In simulations
it contains the rate in 92% to 99% of repetitions with three seeds or more, and in 89% with two that differ much; the
interval over prompts alone contains it in 35% if seeds differ much (benchmarks/interval_coverage.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.statistics.clusters import Floats
from preftune.statistics.intervals import WinRate, wilson, win_rate


def win_rate_over_seeds(
    outcomes_SP: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    unread_SP: Sequence[Sequence[bool]] | None = None,
) -> WinRate:
    """Win rate with an interval over prompts and seeds; over prompts alone if there is only one seed.

    Args:
        outcomes_SP: the share that is won, 0..1 (0.5 for a tie), per seed and prompt; the same prompts for each seed.
        unread_SP: which of them have no readable verdict, as for `win_rate`.
    Raises: DatasetError for seeds with different numbers of prompts, or an outcome outside 0..1.
    """
    if len({len(row) for row in outcomes_SP}) != 1:
        raise DatasetError("Every seed needs an outcome for each prompt, and the prompts must be the same.")
    table_SP = np.asarray(outcomes_SP, dtype=np.float64)
    seeds, prompts = table_SP.shape
    clusters = [*range(prompts)] * seeds
    unread = None if unread_SP is None else [one for row in unread_SP for one in row]
    over_prompts = win_rate(table_SP.ravel(), clusters, confidence=confidence, unread=unread)
    if seeds == 1 or prompts == 1:
        return over_prompts
    unread_N = np.zeros(table_SP.shape, dtype=bool) if unread_SP is None else np.asarray(unread_SP, dtype=bool)
    low = _interval(np.where(unread_N, 0.0, table_SP), confidence)[0]
    high = _interval(np.where(unread_N, 1.0, table_SP), confidence)[1]
    # seeds that differ less than chance makes them do are no reason for a narrower interval
    return replace(over_prompts, ci_low=min(low, over_prompts.ci_low), ci_high=max(high, over_prompts.ci_high))


def wins_over_seeds(rate: WinRate, seeds: int) -> str:
    """The measured rate in words, as the predicate of a sentence."""
    return (
        f"wins {rate.win_rate:.1%} over {counted(seeds, 'seed')} ({rate.confidence:.0%} interval over prompts and "
        f"seeds {rate.ci_low:.1%} to {rate.ci_high:.1%}, {counted(rate.prompts, 'prompt')})"
    )


def _interval(table_SP: Floats, confidence: float) -> tuple[float, float]:
    mean = float(table_SP.mean())
    variance, freedom = _spread(table_SP)
    if variance < 1e-15:
        return mean, mean  # equal outcomes everywhere: the interval over prompts holds
    return wilson(mean, mean * (1 - mean) / variance, float(stdtrit(freedom, 0.5 + confidence / 2)))


def _spread(table_SP: Floats) -> tuple[float, float]:
    """Variance of the grand mean, and its degrees of freedom."""
    seeds, prompts = table_SP.shape
    mean, mean_S1, mean_P = table_SP.mean(), table_SP.mean(axis=1, keepdims=True), table_SP.mean(axis=0)
    of_seeds = prompts * float(np.square(mean_S1 - mean).sum()) / (seeds - 1)
    of_prompts = seeds * float(np.square(mean_P - mean).sum()) / (prompts - 1)
    total = of_prompts + of_seeds
    freedom = total**2 / (of_prompts**2 / (prompts - 1) + of_seeds**2 / (seeds - 1)) if total else 1.0
    return total / (seeds * prompts), seeds - 1 if of_seeds > of_prompts else freedom
