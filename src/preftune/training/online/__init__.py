"""Training on answers that the policy gives while it is trained."""

from preftune.training.online.config import OnlineDPOConfig
from preftune.training.online.preference import OnlineDPOTrainer

__all__ = ["OnlineDPOConfig", "OnlineDPOTrainer"]
