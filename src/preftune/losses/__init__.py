"""Preference losses: pure functions, one registry.

Pure functions of margins and scores. A new pairwise loss is a function in `pairwise` and a line in `registry`.

    advantages  generalised advantage estimation
    pairwise    the DPO family: margins in, loss out
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
