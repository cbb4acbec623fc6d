"""Losses of ranked or scored lists, with a reference, as pure functions of N lists; each returns one loss per list.

`r` is a completion's reward, beta times log policy - log reference. A pair is a list of two. The order of a list's
completions has no effect; there is no preference among completions with the same score."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.losses.pairs import Pairs

_NOTHING = -1e30
"""Nats whose exponential adds 0 to a sum; finite, so that a sum of only such terms has a gradient."""


class Lists(NamedTuple):
    """N lists of up to K completions each. Log-ratios are in nats."""

    ratio_NK: Tensor
    """(N, K) log policy - log reference; 0 beyond the end of a list."""
    score_NK: Tensor
    """(N, K) score of each completion, higher is better, without gradient; 0 beyond the end of a list."""
    there_NK: Tensor
    """(N, K) bool: False beyond the end of a list."""

    @classmethod
    def of(cls, pairs: Pairs) -> Lists:
        """The lists of these pairs; pairs without lists are lists of two, ranked first and second."""
        if pairs.lists is not None:
            return cls(*pairs.lists)
        ratio_NK = torch.stack((pairs.chosen_N, pairs.rejected_N), 1)
        score_NK = ratio_NK.new_tensor([0.0, -1.0]).expand_as(ratio_NK)
        return cls(ratio_NK, score_NK, torch.ones_like(ratio_NK, dtype=torch.bool))

    @property
    def better_NKK(self) -> Tensor:
        """(N, K, K) bool: the first completion has a higher score than the second."""
        both = self.there_NK[:, :, None] & self.there_NK[:, None, :]
        return both & (self.score_NK[:, :, None] > self.score_NK[:, None, :])

    @property
    def count_N(self) -> Tensor:
        """(N,) number of completions of each list, in the dtype of the scores."""
        return self.there_NK.sum(1).to(self.score_NK.dtype)

    def right_N(self) -> Tensor:
        """(N,) share of a list's ordered pairs whose better completion has the higher reward. A tie counts as wrong."""
        better_NKK = self.better_NKK
        right_NKK = better_NKK & (self.ratio_NK[:, :, None] > self.ratio_NK[:, None, :])
        return right_NKK.sum((1, 2)) / better_NKK.sum((1, 2)).clamp(min=1)


def plackett_luce(pairs: Pairs, *, beta: float) -> Tensor:
    """DPO of rankings under the Plackett-Luce model, Rafailov et al. 2023 (arXiv:2305.18290), appendix A.3:
    `sum_k log(1 + sum_j exp(r_j - r_k))`, j over all completions ranked below k. For two completions it is DPO.
    """
    lists = Lists.of(pairs)
    # differences first: what a list of two then gives is DPO's loss to the bit
    lost_NKK = beta * (lists.ratio_NK[:, None, :] - lists.ratio_NK[:, :, None])
    lost_NK = lost_NKK.masked_fill(~lists.better_NKK, _NOTHING).logsumexp(2)
    return -logsigmoid(-lost_NK).sum(1)


def lipo(pairs: Pairs, *, beta: float, lipo_labels: str = "wins") -> Tensor:
    """LiPO-lambda, Liu et al. 2024 (arXiv:2402.01878): `sum |2^s_i - 2^s_j| |1 / log(1 + t_i) - 1 / log(1 + t_j)|
    log(1 + exp(r_j - r_i))` over the pairs with labels `s_i > s_j`, where t is the rank, from 1, of a completion by its
    reward; equal rewards are ranked by their labels.

    Args:
        lipo_labels: "wins": a label is the share of the others that a completion beats, 0 to 1, as its authors average
            the probabilities of winning; "scores": the data's scores unchanged.
    """
    lists = Lists.of(pairs)
    reward_NK, label_NK = beta * lists.ratio_NK, lists.score_NK
    if lipo_labels == "wins":
        won_NK = lists.better_NKK.sum(2) - lists.better_NKK.sum(1)
        label_NK = 0.5 + 0.5 * won_NK / (lists.count_N - 1).clamp(min=1)[:, None]
    weight_NKK = _between(torch.exp2(label_NK)) * _between(1 / torch.log1p(_ranks(reward_NK.detach(), lists)))
    terms_NKK = -weight_NKK * logsigmoid(reward_NK[:, :, None] - reward_NK[:, None, :])
    return terms_NKK.masked_fill(~lists.better_NKK, 0.0).sum((1, 2))


def info_nca(pairs: Pairs, *, beta: float, nca_tau: float = 1e-4) -> Tensor:
    """InfoNCA, Chen et al. 2024 (arXiv:2402.05369), section 3: the cross entropy of softmax(r) to softmax(score / tau).
    For two completions and a small tau it is DPO.

    Args:
        nca_tau: temperature in points of the score; with a small one only the best completion is the label.
    """
    lists = Lists.of(pairs)
    logp_NK = (beta * lists.ratio_NK).masked_fill(~lists.there_NK, -torch.inf).log_softmax(1)
    return -(_labels(lists, nca_tau) * logp_NK.masked_fill(~lists.there_NK, 0.0)).sum(1)


def nca(pairs: Pairs, *, beta: float, nca_tau: float = 1e-4) -> Tensor:
    """NCA, Chen et al. 2024 (arXiv:2402.05369), section 4: `-sum_i (p_i log sigmoid(r_i) + log sigmoid(-r_i) / K)` with
    `p = softmax(score / tau)` over the K completions. For two completions and a small tau it is `nca_pair`.

    Args:
        nca_tau: as in `info_nca`.
    """
    lists = Lists.of(pairs)
    reward_NK = beta * lists.ratio_NK
    pulled_NK = _labels(lists, nca_tau) * logsigmoid(reward_NK)
    held_NK = logsigmoid(-reward_NK) / lists.count_N[:, None]
    return -(pulled_NK + held_NK).masked_fill(~lists.there_NK, 0.0).sum(1)


def _labels(lists: Lists, tau: float) -> Tensor:
    """(N, K) softmax(score / tau); 0 beyond the end of a list."""
    best_N1 = lists.score_NK.masked_fill(~lists.there_NK, -torch.inf).amax(1, keepdim=True)
    # less the best before the division: a small tau makes numbers that rounding would take for equal
    return ((lists.score_NK - best_N1) / tau).masked_fill(~lists.there_NK, -torch.inf).softmax(1)


def _ranks(reward_NK: Tensor, lists: Lists) -> Tensor:
    """(N, K) rank of each completion by its reward, 1 for the highest; equal rewards are ranked by their scores."""
    by_score_NK = lists.score_NK.masked_fill(~lists.there_NK, -torch.inf).argsort(dim=1, descending=True, stable=True)
    reward_NK = reward_NK.masked_fill(~lists.there_NK, -torch.inf)
    by_reward_NK = reward_NK.gather(1, by_score_NK).argsort(dim=1, descending=True, stable=True)
    order_NK = by_score_NK.gather(1, by_reward_NK)
    return order_NK.argsort(dim=1).to(reward_NK.dtype) + 1


def _between(value_NK: Tensor) -> Tensor:
    """(N, K, K) differences between values."""
    return (value_NK[:, :, None] - value_NK[:, None, :]).abs()
