"""Rewards per token, advantages and returns of a round of answers. This module needs no trainer.

Shapes: B answers, T tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.losses.advantages import Moments, explained_variance, gae, normalise, whiten
from preftune.losses.ppo import KL_ESTIMATORS, token_rewards, with_eos_penalty
from preftune.types import TokenizedGroup


@dataclass(frozen=True, slots=True)
class Experience:
    """One answer for the update; the tensors have shape (tokens,) and are on the CPU."""

    group: TokenizedGroup
    logps: Tensor
    """Log-probabilities under the policy that sampled the answer, in nats, computed again by the engine."""
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class Shaping:
    """The settings that turn scores and penalties into rewards and advantages; fields as in `PPOConfig`."""

    kl_coef: float
    kl_estimator: str = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    normalize_rewards: bool = False
    reward_clip: float | None = None
    missing_eos_penalty: float | None = None


class Shaped(NamedTuple):
    """The result of a round."""

    experience: list[Experience]
    figures: dict[str, float]
    """Metrics with TRL's names: means over the answers or their tokens."""
    kl: float
    """Mean log-ratio in nats per answer, an unbiased estimate of the KL, which an adaptive coefficient uses."""
    moments: Moments
    """Moments of all raw scores, with this round's."""


def make_experience(
    groups: Sequence[TokenizedGroup],
    *,
    logps: Sequence[Tensor],
    reference: Sequence[Tensor],
    values: Sequence[Tensor],
    scores: Sequence[float],
    finished: Sequence[bool],
    shaping: Shaping,
    moments: Moments,
) -> Shaped:
    """Rewards, advantages and returns of a round's answers.

    Args:
        groups: one answer each.
        logps, reference, values: of each answer's tokens, shape (tokens,): log-probabilities under policy and
            reference in nats, and values in units of the reward.
        scores: the raw score of each answer.
        finished: whether each answer ended with an end token.
        shaping: the settings.
        moments: moments of all raw scores before this round.
    """
    lengths = torch.tensor([len(one) for one in logps])
    mask_BT = torch.arange(int(lengths.max())) < lengths[:, None]
    logps_BT, reference_BT, values_BT = (_padded(flat) for flat in (logps, reference, values))
    raw_B = torch.tensor(scores, dtype=torch.float32)
    moments = moments.with_more(raw_B)
    scores_B = shaped_scores(raw_B, torch.tensor(finished), shaping, moments)
    kl_BT = KL_ESTIMATORS[shaping.kl_estimator](logps_BT, reference_BT).masked_fill(~mask_BT, 0.0)
    rewards_BT = token_rewards(kl_BT, scores_B, mask_BT, coefficient=shaping.kl_coef)
    if shaping.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    found = gae(rewards_BT, values_BT, mask_BT, shaping.gamma, shaping.lam)
    advantages_BT = whiten(found.advantages_BT, mask_BT) if shaping.whiten_advantages else found.advantages_BT
    log_ratio_B = (logps_BT - reference_BT).masked_fill(~mask_BT, 0.0).sum(1)
    penalty_B = -shaping.kl_coef * kl_BT.sum(1)
    figures = {
        "objective/kl": float(log_ratio_B.mean()),
        "objective/kl_per_token": float(log_ratio_B.sum() / mask_BT.sum()),
        "objective/kl_coef": shaping.kl_coef,
        "objective/entropy": float(-logps_BT.masked_fill(~mask_BT, 0.0).sum(1).mean()),
        "policy/entropy_avg": float(-logps_BT[mask_BT].mean()),
        "objective/non_score_reward": float(penalty_B.mean()),
        "objective/rlhf_reward": float((scores_B + penalty_B).mean()),
        "val/var_explained": float(explained_variance(values_BT, found.returns_BT, mask_BT)),
        "val/mean": float(values_BT[mask_BT].mean()),
        "val/returns_mean": float(found.returns_BT[mask_BT].mean()),
    }
    experience = [
        Experience(group, logps[b], values[b], advantages_BT[b, :n], found.returns_BT[b, :n])
        for b, (group, n) in enumerate(zip(groups, lengths.tolist(), strict=True))
    ]
    return Shaped(experience, figures, figures["objective/kl"], moments)


def shaped_scores(raw_B: Tensor, finished_B: Tensor, shaping: Shaping, moments: Moments) -> Tensor:
    """Normalise and clip raw scores, and subtract the penalty for a missing end token, in this order, so that the
    penalty is in the units of the resulting rewards.

    Args:
        raw_B: shape (B,).
        finished_B: whether each answer ended, shape (B,), bool.
    Returns: shape (B,).
    """
    scores_B = normalise(raw_B, moments) if shaping.normalize_rewards else raw_B
    if shaping.reward_clip is not None:
        scores_B = scores_B.clamp(-shaping.reward_clip, shaping.reward_clip)
    if shaping.missing_eos_penalty is not None:
        scores_B = with_eos_penalty(scores_B, finished_B, shaping.missing_eos_penalty)
    return scores_B


def mini_batches(
    experience: Sequence[Experience], *, epochs: int, parts: int, generator: torch.Generator
) -> list[list[Experience]]:
    """The optimiser steps of a round: every answer once per epoch, in random order, in `parts` steps whose sizes differ
    by at most one; in fewer steps if there are fewer answers.
    """
    steps = []
    for _ in range(epochs):
        order = torch.randperm(len(experience), generator=generator)
        split = order.tensor_split(min(parts, len(experience)))
        steps += [[experience[i] for i in chosen.tolist()] for chosen in split]
    return steps


def _padded(flat: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(flat), batch_first=True)
