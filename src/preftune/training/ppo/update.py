"""The loss of one part of an optimiser step, and its gradients. Free of any trainer."""

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
    """Fields as in `PPOConfig`."""

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
    """Add the gradients of some answers: of the policy's loss, and of the value's.

    The loss of a step is the mean over all its tokens, so parts are sums divided by `step_tokens`. Policy and value
    have a backward pass each, in their own role: with one base the layers may have to be computed again, with the
    adapter that they were computed with.

    Args:
        experience: of the part's groups, in their order.
        step_tokens: of the whole optimiser step.
        backward: accelerate's.
    Returns: the part's share of the step's loss, detached; figures summed over its tokens; how many tokens.
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
