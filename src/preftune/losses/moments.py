"""Losses whose strength depends on the differences of the log-ratios of a step and on their running moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.losses.pairs import Pairs
from preftune.losses.pairwise import smoothed

KEPT = 0.9
"""Share of the running moments that is kept in every step: the momentum of both methods' authors."""

_SMALLEST_BETA = 1e-3
_SMALLEST_STD = 1e-4
"""Nats per token below which policy and reference differ only by rounding."""


@dataclass
class RunningMoments:
    """Exponential means of the mean and the standard deviation of every step, each divided by the sum of its weights:
    without this, as in both methods' code, the first deviation would count as a tenth of its value.
    """

    mean_sum: float = 0.0
    mean_weight: float = 0.0
    std_sum: float = 0.0
    std_weight: float = 0.0

    @property
    def mean(self) -> float:
        return self.mean_sum / self.mean_weight if self.mean_weight else 0.0

    @property
    def std(self) -> float:
        """The running standard deviation; infinite before the first measurement, so that no value is far from the
        mean.
        """
        return self.std_sum / self.std_weight if self.std_weight else float("inf")

    def add(self, gap_N: Tensor) -> None:
        """Adds the values of a step. A single pair has no deviation."""
        if len(gap_N):
            self.mean_sum = KEPT * self.mean_sum + (1 - KEPT) * float(gap_N.mean())
            self.mean_weight = KEPT * self.mean_weight + (1 - KEPT)
        if len(gap_N) > 1:
            self.std_sum = KEPT * self.std_sum + (1 - KEPT) * float(gap_N.std())
            self.std_weight = KEPT * self.std_weight + (1 - KEPT)


def gap(pairs: Pairs) -> Tensor:
    """(N,) log-ratio of the chosen completion less that of the rejected one, without gradient."""
    return (pairs.chosen_N - pairs.rejected_N).detach()


def gap_per_token(pairs: Pairs) -> Tensor:
    """(N,) the same for log-ratios per token."""
    return (pairs.chosen_mean_N - pairs.rejected_mean_N).detach()


def beta_dpo(pairs: Pairs, *, beta: float, step_beta: float | None = None) -> Tensor:
    """beta-DPO, Wu et al. 2024 (arXiv:2407.08639): DPO with the beta of the step, `dynamic_beta`.

    Args:
        step_beta: None means beta, as in an evaluation.
    """
    return -logsigmoid(pairs.logits_N(beta if step_beta is None else step_beta))


def dynamic_beta(gap_N: Tensor, *, beta: float, beta_dpo_alpha: float, mean: float) -> float:
    """`beta (1 + alpha (mean of the step's gaps - running mean))`, at least 1e-3 as in the authors' code.

    Args:
        gap_N: gaps of the step's kept pairs.
        mean: the running mean, including this step.
    """
    return max(_SMALLEST_BETA, beta * (1 + beta_dpo_alpha * (float(gap_N.mean()) - mean)))


def kept_pairs(gap_N: Tensor, draw_N: Tensor, moments: RunningMoments, *, share: float) -> Tensor:
    """(N,) bool: the pairs that beta-DPO keeps of a step, drawn without replacement with probabilities of a normal
    density of their gap around the running mean: pairs with outlying gaps are likelier to be left out.

    Args:
        draw_N: a uniform number in (0, 1) for each pair.
        share: share of pairs to leave out; at least one pair is kept.
    """
    distance_N = (gap_N - moments.mean) / max(moments.std, _SMALLEST_STD)
    key_N = -0.5 * distance_N**2 - torch.log(-torch.log(draw_N))  # the largest are such a sample (Gumbel)
    count = max(1, int(len(gap_N) * (1 - share) + 1e-9))  # 10 * (1 - 0.8) is 1.9999999999999996
    return torch.zeros_like(gap_N, dtype=torch.bool).scatter(0, key_N.topk(count).indices, True)


def alpha_dpo(
    pairs: Pairs,
    *,
    beta: float,
    simpo_gamma: float,
    alpha_dpo_alpha: float,
    gap_mean: float,
    gap_std: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """alpha-DPO, Wu et al. 2024 (arXiv:2410.10148): SimPO with a margin that grows with the lead of a pair,
    `-log sigmoid(beta (p_w - p_l) - gamma - beta alpha z)` on log-probabilities per token, where z is the difference of
    the pair's log-ratios per token, standardised by its running moments, without gradient.

    Args:
        simpo_gamma: nats; the authors' `gamma_beta_ratio` times beta.
        gap_mean, gap_std: the running moments, including this step.
    """
    z_N = (gap_per_token(pairs) - gap_mean) / max(gap_std, _SMALLEST_STD)
    ahead_N = pairs._replace(reference=None)
    logits_N = beta * (ahead_N.chosen_mean_N - ahead_N.rejected_mean_N - alpha_dpo_alpha * z_N)
    return smoothed(logits_N - simpo_gamma - pairs.margin_N, label_smoothing)
