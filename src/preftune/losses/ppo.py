"""Proximal policy optimisation as pure functions: the KL penalty, the clipped losses, the adaptive coefficient.

All log-probabilities are those of sampled tokens, in nats. T tokens (of all answers, concatenated), B answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def kl_k1(policy_T: Tensor, reference_T: Tensor) -> Tensor:
    """`log p - log q` of every sampled token: unbiased for KL(policy || reference), in nats, of either sign.

    The estimator k1 of Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html); summed over an
    answer it is the log-ratio of the answer, the penalty of Ziegler et al. 2019 (arXiv:1909.08593), eq. 2.
    """
    return policy_T - reference_T


def kl_k3(policy_T: Tensor, reference_T: Tensor) -> Tensor:
    """`(r - 1) - log r` with `r = q / p`: also unbiased, never negative, and of lower variance; in nats.

    The estimator k3 of the same note. As a *reward* it differs from k1: its gradient through the sampling is different.
    """
    log_ratio_T = reference_T - policy_T
    return torch.expm1(log_ratio_T) - log_ratio_T


KL_ESTIMATORS = {"k1": kl_k1, "k3": kl_k3}


class PolicyLoss(NamedTuple):
    """The result of `policy_loss` for T tokens."""

    loss_T: Tensor
    ratio_T: Tensor
    """Ratio of the token's current probability to that at sampling; without gradient."""
    clipped_T: Tensor
    """Bool: whether clipping removed the token's gradient."""
    moved_T: Tensor
    """`(log p_new - log p_old)^2 / 2`, TRL's approxkl: the change of the policy since the rollout; without gradient."""


def policy_loss(logps_T: Tensor, old_logps_T: Tensor, advantages_T: Tensor, *, cliprange: float) -> PolicyLoss:
    """The clipped surrogate, Schulman et al. 2017 (arXiv:1707.06347), eq. 7, with the sign of a loss.

    `-min(ratio A, clip(ratio, 1 - c, 1 + c) A)` per token; an advantage of zero gives no gradient.

    Args:
        logps_T: log-probabilities of the current policy, with gradient.
        old_logps_T: those of the policy that sampled.
        advantages_T: in the units of the reward, or whitened.
        cliprange: c, above 0; 0.2 is usual.
    """
    log_ratio_T = logps_T - old_logps_T
    ratio_T = log_ratio_T.exp()
    free_T = -advantages_T * ratio_T
    held_T = -advantages_T * ratio_T.clamp(1 - cliprange, 1 + cliprange)
    return PolicyLoss(
        loss_T=torch.maximum(free_T, held_T),
        ratio_T=ratio_T.detach(),
        clipped_T=(held_T > free_T).detach(),
        moved_T=0.5 * log_ratio_T.detach().square(),
    )


class ValueLoss(NamedTuple):
    """The result of `value_loss` for T tokens."""

    loss_T: Tensor
    clipped_T: Tensor
    """Bool: whether the clipped error was the larger one."""


def value_loss(values_T: Tensor, old_values_T: Tensor, returns_T: Tensor, *, cliprange: float | None) -> ValueLoss:
    """Half the squared error, clipped as in OpenAI's baselines and Ziegler et al. 2019; Huang et al. 2022, "The 37
    implementation details of PPO", detail 9.

    `max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2` per token.

    Args:
        values_T: values of the current value function, with gradient, in the units of the reward.
        old_values_T: its values at the rollout.
        returns_T: its targets.
        cliprange: c, in the units of the reward, above 0; None does not clip.
    """
    free_T = (values_T - returns_T).square()
    if cliprange is None:
        return ValueLoss(0.5 * free_T, torch.zeros_like(free_T, dtype=torch.bool))
    held_T = (values_T.clamp(old_values_T - cliprange, old_values_T + cliprange) - returns_T).square()
    return ValueLoss(0.5 * torch.maximum(free_T, held_T), (held_T > free_T).detach())


def token_rewards(kl_BT: Tensor, scores_B: Tensor, mask_BT: Tensor, *, coefficient: float) -> Tensor:
    """(B, T): `-coefficient * kl` for every token, plus the answer's score at its last token. Ziegler et al. 2019,
    eq. 2; Stiennon et al. 2020 (arXiv:2009.01325).

    Args:
        kl_BT: an estimate per token, nats.
        scores_B: one per answer, in the units of the reward.
        mask_BT: bool; every row has a token.
        coefficient: beta, units of reward per nat, >= 0.
    """
    rewards_BT = (-coefficient * kl_BT).masked_fill(~mask_BT, 0.0)
    last_B1 = mask_BT.sum(1, keepdim=True) - 1
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def with_eos_penalty(scores_B: Tensor, finished_B: Tensor, penalty: float) -> Tensor:
    """Scores, minus `penalty` for answers that the length limit cut, so that the policy learns to end its answers.

    Stiennon et al. 2020 and Huang et al. 2024 (arXiv:2403.17031, the "EOS trick") set a fixed low score instead;
    subtracting is TRL's `missing_eos_penalty`.

    Args:
        finished_B: bool, whether the answer ended with an end-of-sequence token.
        penalty: in the units of the reward, >= 0.
    """
    return scores_B - penalty * (~finished_B).to(scores_B.dtype)


def adapted_coefficient(coefficient: float, *, kl: float, target: float, answers: int, horizon: float) -> float:
    """The next coefficient of the KL penalty, Ziegler et al. 2019 (arXiv:1909.08593), section 2.2:

        e = clip(kl / target - 1, -0.2, 0.2)          coefficient <- coefficient (1 + e answers / horizon)

    The paper writes K = 0.1 for `answers / horizon`; its code, and TRL's, have the horizon.

    Args:
        kl: measured KL of the policy to the reference, nats per answer.
        target: target KL, nats per answer, above 0.
        answers: number of answers sampled since the last change.
        horizon: after about this many answers at twice the target, the coefficient has grown by a factor of e^0.2.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return coefficient * (1 + error * answers / horizon)


class AdaptiveKL:
    """The coefficient of the KL penalty, which follows a target; without a target it is constant."""

    def __init__(self, coefficient: float, *, target: float | None = None, horizon: float = 10_000) -> None:
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, answers: int) -> None:
        """Adapts the coefficient to the measured KL; see `adapted_coefficient`."""
        if self.target is not None:
            self.coefficient = adapted_coefficient(
                self.coefficient, kl=kl, target=self.target, answers=answers, horizon=self.horizon
            )
