"""Trainers on `transformers.Trainer`."""

from preftune.training.config import DPOConfig
from preftune.training.dpo import DPOTrainer

__all__ = ["DPOConfig", "DPOTrainer"]
