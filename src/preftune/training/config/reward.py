"""`RewardConfig`: TrainingArguments with TRL's names for reward models, validated when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from preftune.errors import ConfigError
from preftune.training.config.base import PairConfig
from preftune.training.config.options import option
from preftune.training.config.refused import REFUSED, Refusal

REWARD_REFUSED: Mapping[str, Refusal] = {
    **REFUSED,
    "label_smoothing_factor": Refusal((0, 0.0), "pairs have weights and margins instead; remove it"),
    "include_for_metrics": Refusal(([], None), "compute_metrics gets the scores of every pair; remove it"),
    "bf16_full_eval": Refusal((False,), "training and evaluation are computed in one precision; remove it"),
    "fp16_full_eval": Refusal((False,), "training and evaluation are computed in one precision; remove it"),
    "pad_token": Refusal((None,), "preftune never pads, and saves a pad token with which no text ends; remove it"),
}


@dataclass
class RewardConfig(PairConfig):
    """Configuration of `RewardTrainer`: every field of `transformers.TrainingArguments`, and those below.

    Names follow TRL 1.16, so a TRL script or YAML runs with the import changed. `learning_rate` is 1e-5 for full
    fine-tuning and 1e-4 for adapters, where TRL has 1e-4 for both.
    """

    full_learning_rate: ClassVar[float] = 1e-5
    adapter_learning_rate: ClassVar[float] = 1e-4
    trls_rate: ClassVar[float] = 1e-4
    refused: ClassVar[Mapping[str, Refusal]] = REWARD_REFUSED
    no_eval_judge: ClassVar[str] = "a reward model writes no answers"

    # --- the loss ---
    center_rewards_coefficient: float | None = option(
        None,
        "Strength of the pull of every pair's mean score towards 0, so that scores of different prompts are "
        "comparable; 0.01 is usual. Default: off.",
    )

    # --- the data ---
    chat_template_path: str | None = option(
        None, "A Jinja file, or a model whose chat template is used. Default: the tokenizer's own."
    )
    eos_token: str | None = option(None, "Token that ends an answer. Default: the tokenizer's.")

    # --- the model ---
    disable_dropout: bool = option(True, "Train without dropout, LoRA's included.")

    def _validate(self) -> None:
        super()._validate()
        center = self.center_rewards_coefficient
        if center is not None and not (math.isfinite(center) and center >= 0):
            raise ConfigError(
                f"center_rewards_coefficient={center} must be a finite number, 0 or above: 0.01 is usual."
            )
