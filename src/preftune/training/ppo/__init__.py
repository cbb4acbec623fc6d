"""Proximal policy optimisation on fresh answers.

cast            which model plays policy, value, reward and reference
config          PPOConfig
experience      rewards, advantages and returns of a round
trainer         PPOTrainer
update          the loss of one part of a step
"""

from preftune.training.ppo.config import PPOConfig
from preftune.training.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
