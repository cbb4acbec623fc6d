"""Proximal policy optimisation on fresh answers.

cast            the models of the policy, the value, the reward and the reference
config          PPOConfig
experience      rewards, advantages and returns of a round
trainer         PPOTrainer
update          the loss and the gradients of a part of a step
"""

from preftune.training.ppo.config import PPOConfig
from preftune.training.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
