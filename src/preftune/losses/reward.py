"""The loss of a reward model, as a pure function of the scores of both sides."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.losses.pairs import LossOutput


def bradley_terry(
    chosen_N: Tensor,
    rejected_N: Tensor,
    *,
    weight_N: Tensor,
    margin_N: Tensor,
    center_rewards_coefficient: float | None = None,
) -> LossOutput:
    """Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv:2203.02155), eq. 1; the margin as in Llama 2, Touvron et
    al. 2023 (arXiv:2307.09288), eq. 2; centring as in Eisenstein et al. 2023 (arXiv:2312.09244), section 2.

    `-log sigmoid(chosen - rejected - margin) + c (chosen + rejected)^2`, times the pair's weight.

    Args:
        chosen_N, rejected_N: scores in nats, shape (pairs,): their difference is the log-odds of the preference.
        weight_N: weight of each pair's loss.
        margin_N: nats by which the chosen side must win.
        center_rewards_coefficient: strength of the pull of a pair's mean score towards 0; the preference does not
            determine it. TRL's documentation and the paper use 0.01.
    """
    loss_N = -logsigmoid(chosen_N - rejected_N - margin_N)
    if center_rewards_coefficient is not None:
        loss_N = loss_N + center_rewards_coefficient * (chosen_N + rejected_N) ** 2
    return LossOutput(weight_N * loss_N, chosen_N.detach(), rejected_N.detach())
