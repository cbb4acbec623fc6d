"""Losses of pairs with a reference, as pure functions of N pairs; each returns one loss per pair.

Notation: `A = beta * chosen log-ratio`, `B = beta * rejected log-ratio` (the implicit rewards) and
`logits = A - B - margin`. `beta` > 0 is the strength of the KL penalty: a *higher* beta keeps the policy closer to the
reference. `f_divergence_type` and its alpha are those of `Pairs.under`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from preftune.losses.pairs import Pairs

_SMALLEST_EPSILON = 1e-12


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0, **divergence: object) -> Tensor:
    """DPO, Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; label smoothing as in cDPO (Mitchell 2023), eq. 3.

    `-(1 - e) log sigmoid(logits) - e log sigmoid(-logits)`. At the start policy = reference, and the loss is ln 2.
    """
    return smoothed(_under(pairs, divergence).logits_N(beta), label_smoothing)


def robust(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0, **divergence: object) -> Tensor:
    """Robust DPO, Ray Chowdhury et al. 2024 (arXiv:2403.00409), eq. 12: unbiased if labels are flipped with probability
    e.

    `(-(1 - e) log sigmoid(logits) + e log sigmoid(-logits)) / (1 - 2 e)`, 0 <= e < 0.5.
    """
    logits_N = _under(pairs, divergence).logits_N(beta)
    clean_N, flipped_N = -logsigmoid(logits_N), -logsigmoid(-logits_N)
    return ((1 - label_smoothing) * clean_N - label_smoothing * flipped_N) / (1 - 2 * label_smoothing)


def hinge(pairs: Pairs, *, beta: float, **divergence: object) -> Tensor:
    """The hinge of RSO, Liu et al. 2023 (arXiv:2309.06657), "hinge-norm": `max(0, 1 - logits)`. SLiC-HF, which has no
    reference, is `slic`.
    """
    return relu(1 - _under(pairs, divergence).logits_N(beta))


def ipo(pairs: Pairs, *, beta: float, **divergence: object) -> Tensor:
    """IPO, Azar et al. 2023 (arXiv:2310.12036), eq. 17, with beta for the paper's tau.

    `(h - (1/2 + margin) / beta)^2`, where h is the difference of the log-ratios *per token*: the authors confirmed to
    TRL that their results use the mean over a completion's tokens, and so do TRL and preftune. `ipo_sum` sums them.
    """
    pairs = _under(pairs, divergence)
    return (pairs.chosen_mean_N - pairs.rejected_mean_N - (0.5 + pairs.margin_N) / beta) ** 2


def ipo_sum(pairs: Pairs, *, beta: float, **divergence: object) -> Tensor:
    """IPO with the log-ratios of whole completions, as the paper writes eq. 17 and as OpenRLHF computes it."""
    pairs = _under(pairs, divergence)
    return (pairs.chosen_N - pairs.rejected_N - (0.5 + pairs.margin_N) / beta) ** 2


def sigmoid_norm(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0, **divergence: object) -> Tensor:
    """DPO on log-ratios per token, Lambert et al. 2024 (Tulu 3, arXiv:2411.15124), eq. 6. Its beta is about 5."""
    pairs = _under(pairs, divergence)
    logits_N = beta * (pairs.chosen_mean_N - pairs.rejected_mean_N) - pairs.margin_N
    return smoothed(logits_N, label_smoothing)


def exo_pair(pairs: Pairs, *, beta: float, label_smoothing: float, **divergence: object) -> Tensor:
    """EXO with two completions, Ji et al. 2024 (arXiv:2402.00856), eq. 16: the KL from the policy's preference to the
    label's, which is smoothed by e > 0.

    `q log(q / (1 - e)) + (1 - q) log((1 - q) / e)` with `q = sigmoid(logits)`.
    """
    logits_N = _under(pairs, divergence).logits_N(beta)
    epsilon = max(label_smoothing, _SMALLEST_EPSILON)
    won_N, lost_N = logsigmoid(logits_N), logsigmoid(-logits_N)
    return won_N.exp() * (won_N - math.log1p(-epsilon)) + lost_N.exp() * (lost_N - math.log(epsilon))


def nca_pair(pairs: Pairs, *, beta: float) -> Tensor:
    """NCA with two completions, Chen et al. 2024 (arXiv:2402.05369), eq. 8 as in the authors' code:
    `-log sigmoid(A) - (log sigmoid(-A) + log sigmoid(-B)) / 2`. It keeps the chosen likelihood high.
    """
    chosen_N, rejected_N = beta * pairs.chosen_N, beta * pairs.rejected_N
    return -logsigmoid(chosen_N) - 0.5 * (logsigmoid(-chosen_N) + logsigmoid(-rejected_N))


def bco_pair(pairs: Pairs, *, beta: float, bco_running_mean: bool, delta: float = 0.0) -> Tensor:
    """BCO on pairs, Jung et al. 2024 (arXiv:2404.04656), eq. 9: `-log sigmoid(A - delta) - log sigmoid(delta - B)`.

    Args:
        bco_running_mean: False keeps delta at 0, as in TRL 1.16 and Liger.
        delta: the mean of the rewards of all earlier steps, nats.
    """
    delta = delta if bco_running_mean else 0.0
    return -logsigmoid(beta * pairs.chosen_N - delta) - logsigmoid(delta - beta * pairs.rejected_N)


def sppo_hard(pairs: Pairs, *, beta: float) -> Tensor:
    """SPPO with a certain winner, Wu et al. 2024 (arXiv:2405.00675), eq. 4.7 with P = 1, and beta for 1 / eta.

    `(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2` on log-ratios a and b. Its beta is about 0.001.
    """
    return (pairs.chosen_N - 0.5 / beta) ** 2 + (pairs.rejected_N + 0.5 / beta) ** 2


def apo_zero(pairs: Pairs, *, beta: float) -> Tensor:
    """APO-zero, D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7: `1 - sigmoid(A) + sigmoid(B)`. For chosen answers
    better than the model's own.
    """
    return torch.sigmoid(-beta * pairs.chosen_N) + torch.sigmoid(beta * pairs.rejected_N)


def apo_down(pairs: Pairs, *, beta: float) -> Tensor:
    """APO-down, D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 8: `sigmoid(A) + 1 - sigmoid(A - B)`. For chosen
    answers worse than the model's own.
    """
    chosen_N = beta * pairs.chosen_N
    return torch.sigmoid(chosen_N) + torch.sigmoid(beta * pairs.rejected_N - chosen_N)


def discopop(pairs: Pairs, *, beta: float, discopop_tau: float = 0.05, **divergence: object) -> Tensor:
    """DiscoPOP, Lu et al. 2024 (arXiv:2406.08414), eq. 5: `-(1 - m) log sigmoid(logits) + m exp(-logits)` with
    `m = sigmoid(logits / tau)`.
    """
    logits_N = _under(pairs, divergence).logits_N(beta)
    gate_N = logits_N / discopop_tau
    # exp(-logits) alone overflows where m is 0; their product does not for tau < 1
    exponential_N = torch.exp(logsigmoid(gate_N) - logits_N)
    return -torch.sigmoid(-gate_N) * logsigmoid(logits_N) + exponential_N


def aot(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT on pairs, Melnyk et al. 2024 (arXiv:2406.05882), eq. 9: `-log sigmoid(beta (u - v))`, where u is `log
    policy(chosen) - log policy(rejected)` of a pair, and v the reference's difference at the same rank of all pairs:
    this is DPO with the margins of `aot_margins`.
    """
    return smoothed(pairs.logits_N(beta), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """AOT on single answers, Melnyk et al. 2024 (arXiv:2406.05882), section 4: `-log sigmoid(beta (u - v))`, where u is
    the log-ratio of a chosen answer, and v that of the rejected answer at the same rank of all rejected ones. Each pair
    has half of the loss of its chosen and half of that of its rejected answer, with the margins of
    `aot_unpaired_margins`.
    """
    other_N = pairs.margin_N if pairs.rejected_margin_N is None else pairs.rejected_margin_N
    chosen_N = beta * (pairs.chosen_N - pairs.rejected_N.detach()) - pairs.margin_N
    rejected_N = beta * (pairs.chosen_N.detach() - pairs.rejected_N) - other_N
    both_N = smoothed(chosen_N, label_smoothing) + smoothed(rejected_N, label_smoothing)
    return both_N - 0.5 * both_N.detach()  # every difference occurs twice, with the gradient of one of its sides


def aot_unpaired_margins(pairs: Pairs, *, beta: float) -> tuple[Tensor, Tensor]:
    """(N,) margins, without gradient, that compare the chosen answer of a pair with the rejected answer at the same
    rank, and the rejected answer with the chosen answer at its rank.

    Args:
        pairs: all pairs of the optimiser step.
    """
    chosen_N, rejected_N = pairs.chosen_N.detach(), pairs.rejected_N.detach()
    met_N, meets_N = rejected_N.sort().values[_ranks(chosen_N)], chosen_N.sort().values[_ranks(rejected_N)]
    return beta * (met_N - rejected_N), beta * (chosen_N - meets_N)


def aot_pair_margins(pairs: Pairs, *, beta: float) -> tuple[Tensor, Tensor]:
    """`aot_margins` of all pairs of the optimiser step, for both sides."""
    assert pairs.reference is not None
    margin_N = aot_margins(
        pairs.policy.chosen_N - pairs.policy.rejected_N,
        pairs.reference.chosen_N - pairs.reference.rejected_N,
        beta=beta,
    )
    return margin_N, margin_N


def aot_margins(policy_N: Tensor, reference_N: Tensor, *, beta: float) -> Tensor:
    """(N,) margins that make DPO's logits AOT's, without gradient: `beta (v at the rank of u - v of the pair)`.

    Args:
        policy_N, reference_N: log-probability of chosen minus that of rejected, for all pairs of the optimiser step.
    """
    return (beta * (reference_N.sort().values[_ranks(policy_N)] - reference_N)).detach()


def rdpo(pairs: Pairs, *, beta: float, rdpo_alpha: float = 0.1) -> Tensor:
    """R-DPO, Park et al. 2024 (arXiv:2403.19159), eq. 7: `-log sigmoid(logits + alpha (chosen length - rejected
    length))`. Pairs with a longer chosen side have less effect.

    Args:
        rdpo_alpha: nats per token.
    """
    longer_N = pairs.policy.chosen_length_N - pairs.policy.rejected_length_N
    return -logsigmoid(pairs.logits_N(beta) + rdpo_alpha * longer_N)


def dpop(pairs: Pairs, *, beta: float, dpop_lambda: float = 50.0) -> Tensor:
    """DPO-Positive, Pal et al. 2024 (arXiv:2402.13228), eq. 3: `-log sigmoid(logits - beta lambda max(0, -a))` punishes
    a chosen answer that becomes less likely than under the reference.
    """
    return -logsigmoid(pairs.logits_N(beta) - beta * dpop_lambda * relu(-pairs.chosen_N))


def cal_dpo(pairs: Pairs, *, beta: float) -> Tensor:
    """Cal-DPO, Xiao et al. 2024 (NeurIPS 2024): `-log sigmoid(a - b) + (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2` on
    log-ratios a and b. The first term has no beta; the authors' code halves the squares.
    """
    return -logsigmoid(pairs.chosen_N - pairs.rejected_N) + sppo_hard(pairs, beta=beta)


def reward_aware(pairs: Pairs, *, beta: float, rpo_distance: str = "backward_kl") -> Tensor:
    """Reward-aware preference optimisation, Nvidia 2024 (arXiv:2406.11704), section 3.3.2: the difference of the
    rewards should *be* the margin (the difference of the ratings, scaled), not exceed it.

    Args:
        rpo_distance: from `sigmoid(A - B)` to `sigmoid(margin)`: backward_kl (the authors' default: the cross entropy
            of the label minus its entropy), forward_kl, or squared, of the differences themselves.
    """
    logits_N = beta * (pairs.chosen_N - pairs.rejected_N)
    if rpo_distance == "squared":
        return (logits_N - pairs.margin_N) ** 2
    ours_N, labels_N = torch.stack((logits_N, -logits_N)), torch.stack((pairs.margin_N, -pairs.margin_N))
    p, q = (labels_N, ours_N) if rpo_distance == "backward_kl" else (ours_N, labels_N)
    return (torch.sigmoid(p) * (logsigmoid(p) - logsigmoid(q))).sum(0)


def wpo_weights(chosen_N: Tensor, rejected_N: Tensor) -> Tensor:
    """(N,) weights of pairs by the likelihood of both answers under the policy, WPO, Zhou et al. 2024
    (arXiv:2406.11827), "sampled alignment", with the clamp at 1 of the authors' code.

    Args:
        chosen_N, rejected_N: `GroupLogps.confidence_K` of both sides.
    """
    return (chosen_N + rejected_N).exp().clamp(max=1)


def smoothed(logits_N: Tensor, label_smoothing: float) -> Tensor:
    """`-(1 - e) log sigmoid(logits) - e log sigmoid(-logits)`."""
    return -(1 - label_smoothing) * logsigmoid(logits_N) - label_smoothing * logsigmoid(-logits_N)


def _ranks(value_N: Tensor) -> Tensor:
    return value_N.argsort(stable=True).argsort(stable=True)


def _under(pairs: Pairs, divergence: dict[str, object]) -> Pairs:
    return pairs.under(**divergence) if divergence else pairs  # type: ignore[arg-type]
