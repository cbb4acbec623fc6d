"""Pairwise preference losses as pure functions of the log-probabilities of both sides under policy and reference.

Every loss takes the same arguments, so that a trainer needs no `if`:

    policy, reference   the summed log-probabilities of N pairs, nats (`Sides`)
    beta                strength of the KL penalty, > 0: a *higher* beta keeps the policy closer to the reference
    weight_N            factor of each pair's loss; the mean is over pairs, not over weights
    margin_N            nats of reward by which the chosen side must win (ODPO, Amini et al. 2024, arXiv:2402.10571)
    label_smoothing     probability that a label is flipped, for the losses that know it

Written throughout with `reward = beta * (policy - reference)` per completion and `logits = reward difference - margin`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.types import Sides


class LossOutput(NamedTuple):
    """What a loss says about N pairs."""

    loss_N: Tensor
    """(N,) weighted loss of each pair; the step's loss is its sum over the number of pairs of the whole step."""
    chosen_reward_N: Tensor
    """(N,) implicit reward of the chosen completion, nats, without gradient."""
    rejected_reward_N: Tensor
    """(N,) implicit reward of the rejected completion, nats, without gradient."""


def sigmoid(
    policy: Sides, reference: Sides, *, beta: float, weight_N: Tensor, margin_N: Tensor, label_smoothing: float = 0.0
) -> LossOutput:
    """DPO, Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; label smoothing as in cDPO (Mitchell 2023), eq. 3.

    `-(1 - e) log sigmoid(logits) - e log sigmoid(-logits)`. At the start policy = reference, and the loss is ln 2.
    """
    logits_N = _logits(policy, reference, beta, margin_N)
    loss_N = -(1 - label_smoothing) * logsigmoid(logits_N) - label_smoothing * logsigmoid(-logits_N)
    return _output(loss_N, policy, reference, beta, weight_N)


def robust(
    policy: Sides, reference: Sides, *, beta: float, weight_N: Tensor, margin_N: Tensor, label_smoothing: float = 0.0
) -> LossOutput:
    """Robust DPO, Ray Chowdhury et al. 2024 (arXiv:2403.00409), eq. 12: unbiased when labels flip with probability e.

    `(-(1 - e) log sigmoid(logits) + e log sigmoid(-logits)) / (1 - 2 e)`, 0 <= e < 0.5.
    """
    logits_N = _logits(policy, reference, beta, margin_N)
    clean_N, flipped_N = -logsigmoid(logits_N), -logsigmoid(-logits_N)
    loss_N = ((1 - label_smoothing) * clean_N - label_smoothing * flipped_N) / (1 - 2 * label_smoothing)
    return _output(loss_N, policy, reference, beta, weight_N)


def hinge(policy: Sides, reference: Sides, *, beta: float, weight_N: Tensor, margin_N: Tensor) -> LossOutput:
    """SLiC's hinge on the DPO reward, Zhao et al. 2023 (arXiv:2305.10425) as in RSO, Liu et al. 2023
    (arXiv:2309.06657): `max(0, 1 - logits)`.
    """
    return _output(relu(1 - _logits(policy, reference, beta, margin_N)), policy, reference, beta, weight_N)


def ipo(policy: Sides, reference: Sides, *, beta: float, weight_N: Tensor, margin_N: Tensor) -> LossOutput:
    """IPO, Azar et al. 2023 (arXiv:2310.12036), eq. 17, with beta for the paper's tau.

    `(h - (1/2 + margin) / beta)^2`, where h is the difference of the log-ratios *per token*: the authors confirmed to
    TRL that their results use the mean over a completion's tokens, and so do TRL and preftune.
    """
    chosen_N = (policy.chosen_N - reference.chosen_N) / policy.chosen_length_N
    rejected_N = (policy.rejected_N - reference.rejected_N) / policy.rejected_length_N
    loss_N = (chosen_N - rejected_N - (0.5 + margin_N) / beta) ** 2
    return _output(loss_N, policy, reference, beta, weight_N)


def _logits(policy: Sides, reference: Sides, beta: float, margin_N: Tensor) -> Tensor:
    chosen_N = policy.chosen_N - reference.chosen_N
    rejected_N = policy.rejected_N - reference.rejected_N
    return beta * (chosen_N - rejected_N) - margin_N


def _output(loss_N: Tensor, policy: Sides, reference: Sides, beta: float, weight_N: Tensor) -> LossOutput:
    return LossOutput(
        loss_N=weight_N * loss_N,
        chosen_reward_N=beta * (policy.chosen_N - reference.chosen_N).detach(),
        rejected_reward_N=beta * (policy.rejected_N - reference.rejected_N).detach(),
    )
