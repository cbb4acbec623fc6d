"""Preference losses: pure functions, one registry."""

from preftune.losses.pairwise import LossOutput, hinge, ipo, robust, sigmoid
from preftune.losses.registry import LOSSES, TRL_ONLY, Loss, get_loss

__all__ = ["LOSSES", "TRL_ONLY", "Loss", "LossOutput", "get_loss", "hinge", "ipo", "robust", "sigmoid"]
