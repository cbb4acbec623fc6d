"""Losses of single answers with a label, as pure functions of M answers; each returns one loss per answer.

`ratio_M` is log policy - log reference of each answer, nats; `good_M` is True where the answer is desirable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def kto(ratio_M: Tensor, good_M: Tensor, *, beta: float, baseline: Tensor | float) -> Tensor:
    """KTO, Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 8, without the weights lambda:
    `1 - sigmoid(beta (a - z))` for a good answer, `1 - sigmoid(beta (z - a))` for a bad one.

    Args:
        baseline: z, an estimate of the KL of the policy to the reference on answers to other prompts, without gradient,
            >= 0.
    """
    return torch.sigmoid(beta * torch.where(good_M, baseline - ratio_M, ratio_M - baseline))


def apo_zero_unpaired(ratio_M: Tensor, good_M: Tensor, *, beta: float, baseline: Tensor | float) -> Tensor:
    """APO-zero on single answers, D'Oosterlinck et al. 2024 (arXiv:2408.06266): KTO with a baseline of 0."""
    return kto(ratio_M, good_M, beta=beta, baseline=0.0)


def bco(ratio_M: Tensor, good_M: Tensor, *, beta: float, baseline: Tensor | float) -> Tensor:
    """BCO on single answers, Jung et al. 2024 (arXiv:2404.04656), eq. 8: `-log sigmoid(A - delta)` for a good answer,
    `-log sigmoid(delta - A)` for a bad one, with the rewards A = beta a.

    Args:
        baseline: delta / beta, the mean of all log-ratios before this step.
    """
    return -logsigmoid(beta * torch.where(good_M, ratio_M - baseline, baseline - ratio_M))


UNPAIRED = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired, "bco": bco}
