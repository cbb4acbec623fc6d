"""Losses: pure functions of log-probabilities and scores.

The DPO loss is `pairwise.sigmoid`. A new pairwise loss is a function there and a line in `registry.LOSSES`. Losses of
pairs return one value per pair; the trainer divides their sum by the pairs of the whole optimiser step.

    advantages  generalised advantage estimation
    pairwise    sigmoid (DPO), ipo, hinge, robust: both sides' log-probabilities in, a loss per pair out
    ppo         clipped losses, KL estimators
    registry    LOSSES: every pairwise loss by its name
    reward      the Bradley-Terry loss
"""

from preftune.losses.pairwise import LossOutput, hinge, ipo, robust, sigmoid
from preftune.losses.registry import LOSSES, TRL_ONLY, Loss, get_loss

__all__ = [
    "LOSSES",
    "TRL_ONLY",
    "Loss",
    "LossOutput",
    "advantages",
    "get_loss",
    "hinge",
    "ipo",
    "ppo",
    "registry",
    "reward",
    "robust",
    "sigmoid",
]
