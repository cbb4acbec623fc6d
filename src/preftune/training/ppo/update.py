"""The loss of a part of an optimiser step, and its gradients. This module needs no trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from preftune.logps import Engine
from preftune.logps.batch import PackedBatch
from preftune.losses.ppo import policy_loss, value_loss
from preftune.models.roles import Scalar
from preftune.training.ppo.experience import Experience


class Clips(NamedTuple):
    """Clip ranges and the weight of the value loss; fields as in `PPOConfig`."""

    cliprange: float = 0.2
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.1


def backward_part(
    policy: nn.Module,
    engine: Engine,
    value: Scalar,
    part: PackedBatch,
    experience: Sequence[Experience],
    *,
    step_tokens: int,
    clips: Clips,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[None]],
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Add the gradients of the policy's loss and of the value's loss on some answers.

    The loss of a step is the mean over all its tokens, so that of a part is a sum divided by `step_tokens`. Policy and
    value have one backward pass each, while their own adapter is active: on a shared base, activation checkpointing
    computes layers again, and must use the adapter of the forward pass.

    Args:
        part: the batch of the answers.
        experience: the experience of the part's groups, in their order.
        step_tokens: tokens of the whole optimiser step.
        backward: accelerate's backward.
        autocast: makes the context of the forward passes.
    Returns: the part's share of the step's loss, a detached scalar; metrics summed over its tokens; its number of
        tokens.
    """
    device = part.input_ids.device
    old_T, values_T, advantages_T, returns_T = (
        torch.cat([getattr(one, name) for one in experience]).to(device)
        for name in ("logps", "values", "advantages", "returns")
    )
    with autocast():
        logps_T = engine(policy, part).token_logps_T
    clipped = policy_loss(logps_T, old_T.to(logps_T.dtype), advantages_T, cliprange=clips.cliprange)
    surrogate = clipped.loss_T.sum() / step_tokens
    backward(surrogate)
    with value.acting():
        with autocast():
            said_T = value.of_tokens(part)
        fitted = value_loss(said_T, values_T.to(said_T.dtype), returns_T, cliprange=clips.cliprange_value)
        error = clips.vf_coef * fitted.loss_T.sum() / step_tokens
        backward(error)
    sums = {
        "loss/policy_avg": clipped.loss_T.detach().sum(),
        "loss/value_avg": fitted.loss_T.detach().sum(),
        "policy/approxkl_avg": clipped.moved_T.sum(),
        "policy/clipfrac_avg": clipped.clipped_T.float().sum(),
        "val/clipfrac_avg": fitted.clipped_T.float().sum(),
        "val/ratio": clipped.ratio_T.sum(),
        "val/ratio_square": clipped.ratio_T.square().sum(),
    }
    tokens = torch.tensor(float(len(old_T)), device=device)
    return (surrogate + error).detach(), sums, tokens
