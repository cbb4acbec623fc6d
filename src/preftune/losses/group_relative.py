"""Policy gradients whose baseline is the group of answers to one prompt: GRPO, its variants, and RLOO. Pure functions.

P prompts with K answers each, C = P K answers, T tokens of all answers, concatenated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from preftune.losses.ppo import kl_k3
from preftune.losses.surrogates import Ratios, Surrogate

_EPSILON = 1e-4
"""Added to a standard deviation, as in TRL and most implementations."""


def group_advantages(reward_PK: Tensor, *, scale: str) -> Tensor:
    """(P, K): reward less the mean of its group. GRPO, Shao et al. 2024 (arXiv:2402.03300), section 4.1.2.

    Args:
        reward_PK: NaN for an answer without a reward, whose advantage is 0.
        scale: the divisor: "group", the group's standard deviation; "batch", that of all answers; "none", no divisor,
            as in Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783), against the bias towards easy and hard prompts.
    """
    centred_PK = reward_PK - reward_PK.nanmean(1, keepdim=True)
    if scale == "group":
        centred_PK = centred_PK / (deviation(reward_PK, 1) + _EPSILON)
    elif scale == "batch":
        centred_PK = centred_PK / (deviation(reward_PK.reshape(1, -1), 1) + _EPSILON)
    return centred_PK.nan_to_num(0.0)


def leave_one_out(reward_PK: Tensor) -> Tensor:
    """(P, K): reward less the mean of the *other* rewards of its group. RLOO, Ahmadian et al. 2024 (arXiv:2402.14740),
    eq. 7. NaN is ignored and has the advantage 0; so has the only reward of a group.
    """
    known_PK = (~reward_PK.isnan()).to(reward_PK.dtype)
    others_P1 = known_PK.sum(1, keepdim=True) - 1
    total_P1 = reward_PK.nansum(1, keepdim=True)
    baseline_PK = (total_P1 - reward_PK) / others_P1.clamp(min=1)
    return torch.where(others_P1 > 0, reward_PK - baseline_PK, torch.zeros_like(reward_PK)).nan_to_num(0.0)


def most_uncertain(entropy_T: Tensor, share: float) -> Tensor:
    """(T,) bool: the share of the tokens with the highest entropy, at which a model decides between continuations, Wang
    et al. 2025 (arXiv:2506.01939). Tokens with the entropy of the limit belong to it.

    Args:
        entropy_T: of all tokens of a step, nats.
        share: from 0 (those of the highest entropy alone) to 1 (all).
    """
    if not len(entropy_T):
        return torch.zeros(0, dtype=torch.bool)
    return entropy_T >= torch.quantile(entropy_T, 1 - share)


def deviation(values_PK: Tensor, dim: int) -> Tensor:
    """The unbiased standard deviation, ignoring NaN; 0 for a single value; the dimension is kept."""
    known = ~values_PK.isnan()
    count = known.sum(dim, keepdim=True)
    centred = (values_PK - values_PK.nanmean(dim, keepdim=True)).nan_to_num(0.0)
    return (centred.square().sum(dim, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


class GroupLoss(NamedTuple):
    """The result of `group_loss` for T tokens."""

    loss_T: Tensor
    ratio_T: Tensor
    """Probability ratio of each token, without gradient."""
    clipped_T: Tensor
    """Bool: whether the surrogate limited the token's gradient or weight."""
    kl_T: Tensor
    """k3 of every token, nats, without gradient; zeros without a reference."""


def group_loss(
    logps_T: Tensor,
    old_logps_T: Tensor,
    advantage_T: Tensor,
    owner_T: Tensor,
    *,
    reference_T: Tensor | None,
    beta: float,
    surrogate: Surrogate,
    level: str,
    corrected_kl: bool = True,
) -> GroupLoss:
    """The surrogate of a policy gradient with the sign of a loss, and the KL penalty `beta k3`; one value per token.

    Args:
        logps_T: log-probabilities of the current policy, with gradient.
        old_logps_T: those of the policy that sampled.
        advantage_T: advantage of each token's answer; 0 for a token without a surrogate. The KL holds for all.
        owner_T: int64, the answer that each token belongs to, ascending from 0.
        reference_T: log-probabilities of the reference; None if beta is 0.
        level: the unit of the ratio r: "token"; or "sequence", the geometric mean over an answer's tokens, GSPO, Zheng
            et al. 2025 (arXiv:2507.18071), eq. 7; or "answer", the product over its tokens, as in RLOO.
        surrogate: what is made of ratio and advantage; see `surrogates`.
        corrected_kl: weight the KL with r, as TRL does, because the answers come from the policy that sampled.
    """
    each_T = log_ratio_T = logps_T - old_logps_T
    if level != "token":
        answers = int(owner_T.max()) + 1 if len(owner_T) else 0
        sums = log_ratio_T.new_zeros(answers).index_add(0, owner_T, log_ratio_T)
        if level == "sequence":
            sums = sums / torch.bincount(owner_T, minlength=answers).clamp(min=1)
        log_ratio_T = sums.index_select(0, owner_T)
    ratio_T = log_ratio_T.exp()
    loss_T, limited_T = surrogate(Ratios(ratio_T, each_T, logps_T, advantage_T, owner_T))
    kl_T = torch.zeros_like(loss_T)
    if reference_T is not None and beta:
        kl_T = kl_k3(logps_T, reference_T)
        loss_T = loss_T + beta * (kl_T * ratio_T if corrected_kl else kl_T)
    return GroupLoss(loss_T, ratio_T.detach(), limited_T, kl_T.detach())
