"""Trainers on `transformers.Trainer`."""

from preftune.training.config.dpo import DPOConfig
from preftune.training.config.reward import RewardConfig
from preftune.training.config.sft import SFTConfig
from preftune.training.trainers.dpo import DPOTrainer
from preftune.training.trainers.reward import RewardTrainer
from preftune.training.trainers.sft import SFTTrainer

__all__ = ["DPOConfig", "DPOTrainer", "RewardConfig", "RewardTrainer", "SFTConfig", "SFTTrainer"]
