"""Weights of policy gradients: advantages, whitening, normalised rewards. Pure functions.

B answers, T their tokens, padded on the right; `mask_BT` is True where there is a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_EPSILON = 1e-8


class Advantages(NamedTuple):
    """The result of `gae`; 0 where there is no token."""

    advantages_BT: Tensor
    returns_BT: Tensor
    """Advantage plus value: the target of the value function."""


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation, Schulman et al. 2015 (arXiv:1506.02438), eq. 11 to 16.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)          V after the last token is 0: the answer is over
        A_t     = delta_t + gamma lam A_{t+1}

    Args:
        rewards_BT: reward for each token, in the units of the reward.
        values_BT: V(s_t), the value of the state *before* token t is written, in the same units.
        mask_BT: bool; the tokens of a row stand at its beginning.
        gamma: discount per token, 0..1. 1 is usual for answers, so that length has no effect in itself.
        lam: 0 relies on the value function (one-step advantages), 1 on the rewards (all later ones); 0.95 is usual.
    """
    rewards_BT, values_BT = rewards_BT.masked_fill(~mask_BT, 0.0), values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_advantage_B = next_value_B = rewards_BT.new_zeros(rewards_BT.shape[0])
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B) * mask_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
        next_value_B = values_BT[:, t]
    return Advantages(advantages_BT, (advantages_BT + values_BT).masked_fill(~mask_BT, 0.0))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the mean over all tokens where `mask` is True; 0 if there are none."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Mean 0 and variance 1 over the tokens of `mask`; 0 elsewhere.

    Ziegler et al. 2019 (arXiv:1909.08593), in their code, whiten advantages over the whole batch of rollouts; Huang et
    al. 2024 (arXiv:2403.17031) list it among the important details.

    The variance is the unbiased one. A single token, or equal ones, become 0.

    Args:
        shift_mean: False scales and keeps the mean, as for rewards, whose sign must not change.
    """
    mean = masked_mean(values, mask)
    centred = values - mean
    variance = centred.masked_fill(~mask, 0.0).square().sum() / (mask.sum() - 1).clamp(min=1)
    whitened = centred * (variance + _EPSILON).rsqrt()
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Scalar `1 - Var(returns - values) / Var(returns)` over the tokens of `mask`.

    1: the value function predicts the returns exactly; 0: as well as their mean would; below 0: worse. The result is 0
    if the returns do not vary."""
    returns_T, error_T = returns[mask].double(), (returns[mask] - values[mask]).double()
    variance = returns_T.var(unbiased=False)
    share = 1 - error_T.var(unbiased=False) / variance.clamp(min=_EPSILON)
    return torch.where(variance > _EPSILON, share, torch.zeros_like(share))


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of all scores so far."""

    seen: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """The unbiased standard deviation; 1 as long as there are fewer than two different scores."""
        if self.seen < 2 or self.squares <= 0:
            return 1.0
        return float((self.squares / (self.seen - 1)) ** 0.5)

    def with_more(self, scores_B: Tensor) -> Moments:
        """The moments of these scores and all before them (Chan, Golub and LeVeque 1979)."""
        count = float(scores_B.numel())
        if not count:
            return self
        scores_B = scores_B.double()
        mean = float(scores_B.mean())
        squares = float((scores_B - mean).square().sum())
        total, apart = self.seen + count, mean - self.mean
        return Moments(
            total,
            self.mean + apart * count / total,
            self.squares + squares + apart * apart * self.seen * count / total,
        )


def normalise(scores_B: Tensor, moments: Moments, *, shift_mean: bool = True) -> Tensor:
    """Scores in standard deviations of all scores so far, from their mean; Zheng et al. 2023 (arXiv:2307.04964) on
    reward normalisation and clipping.

    Args:
        scores_B: one score per answer, in the units of the scorer.
        moments: moments of all scores so far, including these.
        shift_mean: False only scales.
    """
    return (scores_B - (moments.mean if shift_mean else 0.0)) / moments.deviation
