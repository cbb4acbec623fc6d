"""`PPOConfig`: the options of PPO, each with the source of its default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from preftune.errors import ConfigError
from preftune.losses.ppo import KL_ESTIMATORS
from preftune.training.config.options import option
from preftune.training.config.refused import REFUSED
from preftune.training.online.config import SamplingConfig


@dataclass
class PPOConfig(SamplingConfig):
    """Configuration of `PPOTrainer`: the fields of `transformers.TrainingArguments` and `SamplingConfig`, and these.

    The options that TRL's PPOConfig had (0.12 and later; "TRL 0.11" is the version before) have its names, and its
    defaults unless the help text says otherwise. Sources: Schulman et al. 2017 (arXiv:1707.06347) for PPO; Ziegler et
    al. 2019 (arXiv:1909.08593) for PPO on language models, with the adaptive penalty; Stiennon et al. 2020
    (arXiv:2009.01325); Huang et al. 2024 (arXiv:2403.17031) for the details.

    On each rank, a round samples `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    answers, and makes `num_ppo_epochs * num_mini_batches` optimiser steps of them.
    """

    full_learning_rate: ClassVar[float] = 3e-6
    adapter_learning_rate: ClassVar[float] = 3e-5
    trls_rate: ClassVar[float] = 3e-6
    refused = REFUSED

    # --- defaults that differ from TrainingArguments ---
    learning_rate: float | None = option(  # type: ignore[assignment]
        None, "Initial learning rate. Default: 3e-6 for full fine-tuning (TRL's), 3e-5 for adapters."
    )
    num_train_epochs: float = option(1.0, "Passes over the prompts, unless total_episodes or max_steps is given.")
    logging_steps: float | None = option(  # type: ignore[assignment]
        None, "Optimiser steps between two log lines; below 1, a share of all steps. Default: once per round."
    )

    # --- rounds ---
    num_ppo_epochs: int = option(4, "Number of passes over the answers of a round. 4: TRL; Huang et al. 2024.")
    num_mini_batches: int = option(
        4,
        "Number of optimiser steps per pass over a round. 4: OpenAI's baselines; TRL had 1.",
    )

    # --- the KL penalty ---
    kl_coef: float = option(
        0.05, "Penalty per nat of KL to the reference, for every token. 0.05: TRL; Huang et al. 2024."
    )
    kl_estimator: str = option(
        "k1",
        "k1 (the log-ratio, the usual choice) or k3 (never negative, less variance): Schulman 2020.",
        choices=list(KL_ESTIMATORS),
    )
    kl_target: float | None = option(
        None,
        "Target KL in nats per answer, to which kl_coef is adapted. Default: kl_coef is constant. 6: Ziegler et "
        "al. 2019.",
    )
    kl_horizon: float = option(10_000, "Number of answers over which kl_coef is adapted. 10000: Ziegler et al.'s code.")

    # --- advantages and losses ---
    gamma: float = option(1.0, "Discount per token, 0..1. 1: Ziegler et al. 2019; TRL.")
    lam: float = option(0.95, "GAE's lambda, 0..1. 0.95: Schulman et al. 2015; TRL.")
    cliprange: float = option(0.2, "Clip range of the policy's ratio. 0.2: Schulman et al. 2017.")
    cliprange_value: float | None = option(
        0.2, "Clip range of the change of a value, in units of the reward. 0.2: TRL; null for no clipping."
    )
    vf_coef: float = option(0.1, "Weight of the value loss. 0.1: Ziegler et al. 2019; TRL.")
    value_learning_rate: float | None = option(
        None, "Learning rate of the value function. Default: that of the policy. (Adam undoes most of vf_coef.)"
    )
    whiten_advantages: bool = option(
        True, "Normalise advantages to mean 0 and variance 1 over a round. Ziegler et al. 2019."
    )
    whiten_rewards: bool = option(
        False, "Normalise token rewards to variance 1 over a round. False: TRL; Huang et al. 2024."
    )

    # --- scores ---
    normalize_rewards: bool = option(
        False, "Normalise scores by their running mean and standard deviation (TRL 0.11: use_score_norm)."
    )
    reward_clip: float | None = option(
        None, "Clip scores to plus and minus this value, after normalising (TRL 0.11: score_clip)."
    )
    score_threshold: float | None = option(
        None,
        "Minimum score of answers to train on (the share below it is logged). Default: all answers are trained on.",
    )
    max_disagreement: float | None = option(
        None, "Maximum deviation of an ensemble's scores for answers to train on. Default: all answers are trained on."
    )

    # --- the value function ---
    value_model: str | None = option(
        None,
        "A separate model for the value. Default: an adapter on the policy's base; if all weights are trained, a "
        "copy of the policy.",
    )
    value_init: str = option(
        "auto",
        "Initial value adapter: zeros, or the reward model's (Ouyang et al. 2022), which must be an adapter on the "
        "same base. auto: the reward model's if possible.",
        choices=["auto", "zeros", "reward"],
    )

    def _validate(self) -> None:
        super()._validate()
        self._at_least_1("num_ppo_epochs", "num_mini_batches")
        if self.logging_steps is None:
            self.logging_steps = self.num_ppo_epochs * self.num_mini_batches
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be between 0 and 1.")
        for name in ("cliprange", "cliprange_value", "kl_target", "kl_horizon", "reward_clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value} must be a finite number above 0.")
        for name in ("kl_coef", "vf_coef", "value_learning_rate", "max_disagreement"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value} must be a finite number, 0 or above.")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError(
                "kl_target adapts kl_coef by factors, so that kl_coef=0 would stay 0. Start with kl_coef=0.05."
            )
        if self.max_disagreement is not None and len(self.reward_model) == 1:
            raise ConfigError(
                "max_disagreement needs an ensemble: name several models in reward_model, or leave it out."
            )
        if self.value_model is not None and self.value_init == "reward":
            raise ConfigError(
                "value_init='reward' applies to an adapter, but value_model is a whole model. Leave one out."
            )
        if self.temperature != 1.0 and self.engine == "naive":
            raise ConfigError(f"temperature={self.temperature}: the naive engine supports only 1. Leave engine out.")
