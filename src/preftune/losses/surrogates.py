"""What a policy gradient on groups of answers does with the probability ratio: clips it, gates it, or weighs with it.

Each is a function of T tokens and returns the loss of every token, and whether its weight or gradient was limited. The
ratio r is that of `group_loss`, of a token or of its answer; A is the advantage.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Ratios(NamedTuple):
    """The inputs of a surrogate, one value per token."""

    ratio_T: Tensor
    """Of tokens or of answers, with gradient."""
    log_ratio_T: Tensor
    """Log-probability now less that of sampling, of each token, nats."""
    logps_T: Tensor
    """Log-probabilities of the current policy, with gradient, nats."""
    advantage_T: Tensor
    owner_T: Tensor
    """int64, the answer that each token belongs to, ascending from 0."""


class Surrogate(Protocol):
    """Returns (loss_T, limited_T)."""

    def __call__(self, given: Ratios, /) -> tuple[Tensor, Tensor]: ...


class Clipped(NamedTuple):
    """`-min(r A, clip(r, 1 - low, 1 + high) A)`: PPO's, as in GRPO, Shao et al. 2024 (arXiv:2402.03300), eq. 3. A
    `high` above `low` is DAPO's clip-higher, Yu et al. 2025 (arXiv:2503.14476), eq. 8.
    """

    low: float
    high: float
    most: float | None = None
    """Upper limit of r for an answer that is worse than the others, where clipping leaves it unbounded: two-sided
    clipping, Prime Intellect 2025 (arXiv:2505.07291), section 3.4.
    """

    def __call__(self, given: Ratios, /) -> tuple[Tensor, Tensor]:
        ratio_T, advantage_T = given.ratio_T, given.advantage_T
        free_T = -advantage_T * (ratio_T if self.most is None else ratio_T.clamp(max=self.most))
        held_T = -advantage_T * ratio_T.clamp(1 - self.low, 1 + self.high)
        return torch.maximum(free_T, held_T), (held_T > free_T).detach()


class Cispo(NamedTuple):
    """`-min(r, most) A log p` with no gradient of the weight: CISPO, MiniMax 2025 (arXiv:2506.13585), without a
    lower limit. Every token keeps a gradient.
    """

    most: float

    def __call__(self, given: Ratios, /) -> tuple[Tensor, Tensor]:
        weight_T = given.ratio_T.detach().clamp(max=self.most)
        return -weight_T * given.advantage_T * given.logps_T, given.ratio_T.detach() > self.most


class Sapo(NamedTuple):
    """`-(4 / t) sigmoid(t (r - 1)) A`: a smooth gate in place of clipping, SAPO (arXiv:2511.20347). Its
    gradient at r = 1 is that without a gate.
    """

    positive: float
    """Temperature t where A is above 0."""
    negative: float
    """Temperature elsewhere; higher, because such updates are less stable."""

    def __call__(self, given: Ratios, /) -> tuple[Tensor, Tensor]:
        heat_T = torch.full_like(given.ratio_T, self.negative).masked_fill(given.advantage_T > 0, self.positive)
        gate_T = torch.sigmoid(heat_T * (given.ratio_T - 1)) * 4 / heat_T
        return -gate_T * given.advantage_T, torch.zeros_like(heat_T, dtype=torch.bool)


class Vespo(NamedTuple):
    """`-phi(w) A log p` with no gradient of phi, `phi(w) = exp(lambda) w^k exp(-lambda w)`, w the ratio of a whole
    answer: VESPO (arXiv:2602.10693). phi(1) is 1.
    """

    k_positive: float
    lambda_positive: float
    """Of answers whose A is not below 0."""
    k_negative: float
    lambda_negative: float

    def __call__(self, given: Ratios, /) -> tuple[Tensor, Tensor]:
        owner_T, tokens_T = given.owner_T, given.log_ratio_T.detach().clamp(-_LOG_HIGH, _LOG_HIGH)
        answers = int(owner_T.max()) + 1 if len(owner_T) else 0
        log_T = tokens_T.new_zeros(answers).index_add(0, owner_T, tokens_T).clamp(_LOG_LOW, _LOG_HIGH)[owner_T]
        good_T = given.advantage_T >= 0
        k_T = torch.full_like(log_T, self.k_negative).masked_fill(good_T, self.k_positive)
        decay_T = torch.full_like(log_T, self.lambda_negative).masked_fill(good_T, self.lambda_positive)
        phi_T = (decay_T + k_T * log_T - decay_T * log_T.exp()).exp()
        return -phi_T * given.advantage_T * given.logps_T, torch.zeros_like(good_T)


_LOG_LOW, _LOG_HIGH = math.log(1e-8), 20.0
"""Limits of log w, those of its authors."""
