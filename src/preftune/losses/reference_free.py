"""Losses of pairs without a reference, as pure functions of N pairs; each returns one loss per pair.

`Pairs.chosen_N` is here log policy of the chosen completion, `Pairs.chosen_mean_N` the same per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.pairs import LARGEST_EXPONENT, Pairs
from preftune.losses.pairwise import smoothed


def simpo(pairs: Pairs, *, beta: float, simpo_gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """SimPO, Meng et al. 2024 (arXiv:2405.14734), eq. 6: `-log sigmoid(beta (p_w - p_l) - gamma)` on log-probabilities
    per token.

    Args:
        simpo_gamma: nats by which the chosen side must win, on the scale of the reward (the authors' `gamma_beta_ratio`
            times beta).
    """
    return smoothed(_means(pairs, beta) - simpo_gamma, label_smoothing)


def alphapo(pairs: Pairs, *, beta: float, simpo_gamma: float, alphapo_alpha: float = 0.25) -> Tensor:
    """AlphaPO, Gupta et al. 2025 (arXiv:2501.03884), eq. 5: SimPO with the reward `(1 - p^-alpha) / alpha`, where p is
    the geometric mean of the tokens' probabilities; at alpha 0 it is SimPO.
    """
    if alphapo_alpha == 0:
        return simpo(pairs, beta=beta, simpo_gamma=simpo_gamma)
    chosen_N, rejected_N = (
        -torch.expm1((-alphapo_alpha * mean_N).clamp(max=LARGEST_EXPONENT)) / alphapo_alpha
        for mean_N in (pairs.chosen_mean_N, pairs.rejected_mean_N)
    )
    return -logsigmoid(beta * (chosen_N - rejected_N) - simpo_gamma - pairs.margin_N)


def cpo(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """CPO, Xu et al. 2024 (arXiv:2401.08417), eq. 3 without its likelihood term, which is the loss `sft`:
    `-log sigmoid(beta (log p_w - log p_l))` on whole completions.
    """
    return smoothed(pairs.logits_N(beta), label_smoothing)


def tpo(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The preference term of TPO, Saeidi et al. 2024 (arXiv:2405.16681): `-log sigmoid(beta (log p_w - log p_l))` on
    whole completions. TPO is this and the likelihood of a third, gold answer, which is the loss `gold`.
    """
    return cpo(pairs, beta=beta, label_smoothing=label_smoothing)


def tpo_l(pairs: Pairs, *, beta: float, tpo_l_gamma: float = 0.5, label_smoothing: float = 0.0) -> Tensor:
    """The preference term of TPO-L, Saeidi et al. 2024 (arXiv:2405.16681): that of SimPO,
    `-log sigmoid(beta (p_w - p_l) - gamma)` on log-probabilities per token.

    Args:
        tpo_l_gamma: nats by which the chosen side must win.
    """
    return simpo(pairs, beta=beta, simpo_gamma=tpo_l_gamma, label_smoothing=label_smoothing)


def odds_ratio(pairs: Pairs, *, beta: float) -> Tensor:
    """The preference term of ORPO, Hong et al. 2024 (arXiv:2403.07691), eq. 7: `-beta log sigmoid(log odds_w - log
    odds_l)`, odds = p / (1 - p), p the geometric mean of the tokens' probabilities; beta is the paper's lambda. ORPO is
    this and the loss `sft`.
    """
    log_odds_N = _log_odds(pairs.chosen_mean_N) - _log_odds(pairs.rejected_mean_N)
    return -beta * logsigmoid(log_odds_N)


def simper(pairs: Pairs) -> Tensor:
    """SimPER, Xiao et al. 2025 (arXiv:2502.00883), eq. 6: `exp(p_l) - exp(p_w)` on log-probabilities per token, that is
    the difference of the inverse perplexities. It has no hyperparameter.
    """
    return pairs.rejected_mean_N.exp() - pairs.chosen_mean_N.exp()


def slic(pairs: Pairs, *, slic_delta: float = 1.0) -> Tensor:
    """The calibration term of SLiC-HF, Zhao et al. 2023 (arXiv:2305.10425), eq. 1: `max(0, delta - log p_w + log p_l)`.
    SLiC-HF is this and the loss `sft` with a weight.

    Args:
        slic_delta: nats.
    """
    return relu(slic_delta + pairs.margin_N - pairs.chosen_N + pairs.rejected_N)


def _means(pairs: Pairs, beta: float) -> Tensor:
    return beta * (pairs.chosen_mean_N - pairs.rejected_mean_N) - pairs.margin_N


def _log_odds(log_p_N: Tensor) -> Tensor:
    """`log(p / (1 - p))` without cancellation near p = 0 and p = 1; at p = 1 as large as the precision allows."""
    smallest = torch.finfo(log_p_N.dtype).tiny
    log_p_N = log_p_N.clamp(max=-smallest)
    near_one_N = log_p_N > -math.log(2)
    # each branch gets values from its own half, so that the other one has no infinite gradient
    close_N = torch.where(near_one_N, log_p_N, torch.full_like(log_p_N, -math.log(2)))
    far_N = torch.where(near_one_N, torch.full_like(log_p_N, -math.log(2)), log_p_N)
    return log_p_N - torch.where(near_one_N, torch.log(-torch.expm1(close_N)), torch.log1p(-torch.exp(far_N)))


def likelihood(pairs: Pairs, *, tokens_per_pair: Tensor | float) -> Tensor:
    """Negative log-likelihood of the chosen completions, whose mean over pairs is the mean over their tokens:
    `-log p_w / tokens_per_pair`.

    Args:
        tokens_per_pair: tokens of the chosen completions of the whole optimiser step over its pairs; the length of each
            completion, (N,), makes it a mean per completion.
    """
    return -(pairs.policy.chosen_N if pairs.whole_N is None else pairs.whole_N) / tokens_per_pair


def gold_likelihood(pairs: Pairs, *, gold_tokens_per_pair: float) -> Tensor:
    """Negative log-likelihood of the gold answers, whose mean over pairs is the mean over their tokens:
    `-log p_gold / gold_tokens_per_pair`.

    Args:
        gold_tokens_per_pair: tokens of the gold answers of the whole optimiser step over its pairs.
    """
    assert pairs.gold_N is not None
    return -pairs.gold_N / gold_tokens_per_pair
