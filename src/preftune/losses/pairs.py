"""Inputs and outputs of a loss of pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.types import Sides

LARGEST_EXPONENT = 40.0
"""Largest exponent of `exp` in a divergence: the square of a larger value overflows float32, and a difference of
infinities has no gradient.
"""


class LossOutput(NamedTuple):
    """The result of a loss for N pairs."""

    loss_N: Tensor
    """(N,) weighted loss of each pair; the step's loss is its sum over the number of pairs of the whole step."""
    chosen_reward_N: Tensor
    """(N,) implicit reward of the chosen completion, nats, without gradient."""
    rejected_reward_N: Tensor
    """(N,) implicit reward of the rejected completion, nats, without gradient."""
    right_N: Tensor | None = None
    """(N,) for lists: the share of their ordered pairs in which the better completion has the higher reward."""


class Pairs(NamedTuple):
    """N pairs under the policy and the reference. All values are in nats."""

    policy: Sides
    reference: Sides | None
    """None for a loss without a reference: log-ratios are then log-probabilities."""
    margin_N: Tensor
    """(N,) nats of reward by which the chosen side must win (ODPO, Amini et al. 2024, arXiv:2402.10571)."""
    whole_N: Tensor | None = None
    """(N,) log policy of the chosen completion with all its tokens, if `policy` weighs some of them differently
    (LD-DPO).
    """
    gold_N: Tensor | None = None
    """(N,) log policy of a third answer, which is only imitated (TPO)."""
    rejected_margin_N: Tensor | None = None
    """(N,) the margin for the gradient of the rejected side, if it differs (`aot_unpaired`)."""
    lists: tuple[Tensor, Tensor, Tensor] | None = None
    """Log-ratios, scores and presence of the completions of N lists, as in `listwise.Lists`; the pairs are then their
    best and worst ones."""

    @property
    def chosen_N(self) -> Tensor:
        """(N,) log policy - log reference of the chosen completion."""
        return self.policy.chosen_N if self.reference is None else self.policy.chosen_N - self.reference.chosen_N

    @property
    def rejected_N(self) -> Tensor:
        """(N,) log policy - log reference of the rejected completion."""
        return self.policy.rejected_N if self.reference is None else self.policy.rejected_N - self.reference.rejected_N

    @property
    def chosen_mean_N(self) -> Tensor:
        """(N,) `chosen_N` per token."""
        return self.chosen_N / self.policy.chosen_length_N

    @property
    def rejected_mean_N(self) -> Tensor:
        """(N,) `rejected_N` per token."""
        return self.rejected_N / self.policy.rejected_length_N

    def logits_N(self, beta: float) -> Tensor:
        """(N,) difference of the rewards minus the margin."""
        return beta * (self.chosen_N - self.rejected_N) - self.margin_N

    def under(self, f_divergence_type: str, f_alpha_divergence_coef: float) -> Pairs:
        """The pairs with `f'(policy / reference)` in place of the log-ratio: the reward under a divergence other than
        the reverse KL. f-DPO, Wang et al. 2023 (arXiv:2309.16240), table 1, with constants that make it 0 where policy
        and reference agree: in rewards per token (ipo, sigmoid_norm) they do not cancel.

            reverse_kl         log u
            forward_kl         1 - 1 / u
            js_divergence      log(2 u / (1 + u))
            alpha_divergence   (u^(alpha - 1) - 1) / (alpha - 1)

        Args:
            f_divergence_type: one of the names above.
            f_alpha_divergence_coef: alpha as in TRL since 1.0: at 1 it is the reverse KL. Older TRL and ms-swift write
                u^-alpha, where alpha is 1 minus this one.
        """
        if f_divergence_type == "reverse_kl" or (
            f_divergence_type == "alpha_divergence" and f_alpha_divergence_coef == 1
        ):
            return self
        chosen_N, rejected_N = (
            _score(ratio_N, f_divergence_type, f_alpha_divergence_coef) for ratio_N in (self.chosen_N, self.rejected_N)
        )
        return Pairs(self.policy._replace(chosen_N=chosen_N, rejected_N=rejected_N), None, self.margin_N)


def _score(log_ratio_N: Tensor, divergence: str, alpha: float) -> Tensor:
    if divergence == "forward_kl":
        return -torch.expm1((-log_ratio_N).clamp(max=LARGEST_EXPONENT))
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio_N)
    return torch.expm1(((alpha - 1) * log_ratio_N).clamp(max=LARGEST_EXPONENT)) / (alpha - 1)
