"""Proximal policy optimisation on fresh answers."""

from preftune.training.ppo.config import PPOConfig
from preftune.training.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
