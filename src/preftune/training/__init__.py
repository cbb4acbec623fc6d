"""Trainers on `transformers.Trainer`."""

from preftune.training.config import DPOConfig
from preftune.training.dpo import DPOTrainer
from preftune.training.reward import RewardTrainer
from preftune.training.reward_config import RewardConfig
from preftune.training.sft import SFTTrainer
from preftune.training.sft_config import SFTConfig

__all__ = ["DPOConfig", "DPOTrainer", "RewardConfig", "RewardTrainer", "SFTConfig", "SFTTrainer"]
