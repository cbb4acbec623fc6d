"""`GRPOConfig` and `RLOOConfig`: the options of training on groups of answers, under TRL's names."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.losses.surrogates import Cispo, Clipped, Sapo, Surrogate, Vespo
from preftune.training.config.options import option
from preftune.training.config.referenced import MovingReferenceFields
from preftune.training.config.refused import REFUSED, Refusal
from preftune.training.online.config import SamplingConfig, check_reward_weights

_CISPO_LIMIT = 5.0
"""Upper limit of CISPO's weights: that of ScaleRL (arXiv:2510.13786), which TRL recommends."""

_READ = {
    "cispo": ("epsilon_high",),
    "sapo": ("sapo_temperature_pos", "sapo_temperature_neg"),
    "vespo": ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}
"""The options in `_OF_LOSSES` that a loss reads; the others clip, and read the rest."""
_OF_LOSSES = {"epsilon", "epsilon_high", "delta"}.union(*_READ.values())

_OWN_DISTRIBUTION = "answers are sampled from the policy's own distribution at the given temperature; remove it"
_REFUSED = {
    **{name: Refusal((harmless,), _OWN_DISTRIBUTION) for name, harmless in
       (("top_p", 1.0), ("top_k", 0), ("min_p", None), ("repetition_penalty", 1.0), ("generation_kwargs", None))},
    "steps_per_generation": Refusal((None, 1), "a round of answers makes num_iterations steps; use num_iterations"),
    "log_completions": Refusal((False,), "answers are in samples.jsonl and the report; remove it"),
    "chat_template_kwargs": Refusal((None,), "give rows a column chat_template_kwargs; remove it"),
    "shuffle_dataset": Refusal((True,), "prompts are drawn in a seeded order; remove it"),
    "delta": Refusal((None,), "it is an option of GRPO; remove it"),
    "top_entropy_quantile": Refusal((1.0,), "all tokens are trained; remove it"),
    "entropy_coef": Refusal((0.0,), "no entropy bonus is added; remove it"),
    "multi_objective_aggregation": Refusal(("sum_then_normalize",), "rewards are summed first; remove it"),
    "reward_clip_range": Refusal((None,), "clip in the reward function; remove it"),
}  # fmt: skip
"""Options of TRL's that are refused unless they have no effect."""


@dataclass
class GroupConfig(MovingReferenceFields, SamplingConfig):
    """What `GRPOConfig` and `RLOOConfig` share.

    Names follow TRL's. Batch sizes count answers, as there: `per_device_train_batch_size` times
    `gradient_accumulation_steps` answers make an optimiser step, `num_generations` to each prompt.
    """

    full_learning_rate: ClassVar[float] = 1e-6
    adapter_learning_rate: ClassVar[float] = 1e-5
    trls_rate: ClassVar[float] = 1e-6
    refused: ClassVar[Mapping[str, Refusal]] = {
        **{name: refusal for name, refusal in REFUSED.items() if name != "max_completion_length"},
        **_REFUSED,
    }
    honoured: ClassVar[Collection[str]] = ("eval_strategy", "eval_on_start")
    no_eval_judge: ClassVar[str] = (
        "evaluations report the reward of answers to held-out prompts; preftune eval compares them with the "
        "reference's afterwards"
    )

    num_train_epochs: float = option(1.0, "Passes over the prompts.")
    per_device_train_batch_size: int = option(
        8, "Number of answers at a time; times gradient_accumulation_steps, of a step."
    )
    max_new_tokens: int = option(256, "Maximum length of an answer, in tokens.")
    max_completion_length: int | None = option(None, "TRL's name of max_new_tokens.")
    num_generations: int = option(8, "Number of answers to each prompt (K), at least 2.")
    num_generations_eval: int | None = option(
        None, "Number of answers to each held-out prompt. Default: num_generations."
    )
    beta: float = option(0.0, "Strength of the KL penalty; 0 needs no reference.")
    num_iterations: int = option(1, "Number of optimiser steps on the same answers (mu).")
    epsilon: float = option(0.2, "Clip range of the ratio, below 1 and by default above it.")
    epsilon_high: float | None = option(
        None,
        "Clip range above 1; DAPO's is 0.28. Default: epsilon. With loss_type cispo: upper limit of the ratio, 5.",
    )
    reward_weights: list[float] | None = option(None, "Weight of each reward. Default: 1 each.")
    mask_truncated_completions: bool = option(False, "Do not train on answers that max_new_tokens cut.")
    dynamic_sampling: bool = option(
        False,
        "Leave out prompts whose answers all have the same reward, and sample others until the step is full (DAPO).",
    )

    # --- fields of TRL's that preftune refuses unless they have no effect ---
    top_p: float = option(1.0, "Only 1.")
    top_k: int = option(0, "Only 0.")
    min_p: float | None = option(None, "Only unset.")
    repetition_penalty: float = option(1.0, "Only 1.")
    generation_kwargs: str | None = option(None, "Only unset.")
    steps_per_generation: int | None = option(None, "Only unset, or 1.")
    log_completions: bool = option(False, "Only False: samples.jsonl has the answers.")
    chat_template_kwargs: str | None = option(None, "Only unset: it is a column of the rows.")
    shuffle_dataset: bool = option(True, "Only True.")
    delta: float | None = option(None, "Only unset.")
    top_entropy_quantile: float = option(1.0, "Only 1.")
    entropy_coef: float = option(0.0, "Only 0.")
    multi_objective_aggregation: str = option("sum_then_normalize", "Only sum_then_normalize.")
    reward_clip_range: str | None = option(None, "Only unset.")

    @property
    def epsilons(self) -> tuple[float, float]:
        """Clip ranges below and above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    def _validate(self) -> None:
        if self.max_completion_length is not None:
            self._at_least_1("max_completion_length")
            self.max_new_tokens, self.max_completion_length = self.max_completion_length, None
        if self.reward_ensemble != "mean":
            raise ConfigError(
                f"reward_ensemble={self.reward_ensemble!r} is not honoured: rewards are summed. Use reward_weights."
            )
        for name, least in (("num_generations", 2), ("num_generations_eval", 1), ("num_iterations", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}={value} must be at least {least}.")
        if not all(epsilon > 0 for epsilon in self.epsilons) or self.epsilon >= 1:
            raise ConfigError(f"epsilon={self.epsilon} and epsilon_high must be above 0, and epsilon below 1.")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ConfigError(f"beta={self.beta} must be a finite number, 0 or above.")
        check_reward_weights(self.reward_weights)
        self._check_moves()
        if self.sync_ref_model and not self.beta:
            raise ConfigError(
                "sync_ref_model=True moves a reference, which beta=0 does not use. Give a beta, such as 0.04."
            )
        super()._validate()

    def __post_init__(self) -> None:
        super().__post_init__()
        answers = self.rows_per_step
        if answers % self.num_generations:
            raise ConfigError(
                f"a step has {counted(answers, 'answer')} (per_device_train_batch_size x gradient_accumulation_steps "
                f"x processes), which is not a multiple of num_generations={self.num_generations}. Make it a multiple, "
                "because every prompt has that many answers."
            )


@dataclass
class GRPOConfig(GroupConfig):
    """Configuration of `GRPOTrainer`."""

    refused: ClassVar[Mapping[str, Refusal]] = {
        name: refusal for name, refusal in GroupConfig.refused.items() if name not in ("delta", "top_entropy_quantile")
    }

    beta: float = option(0.0, "Strength of the KL penalty; 0 needs no reference. The paper uses 0.04.")
    delta: float | None = option(
        None, "Upper limit of the ratio for answers worse than the others, above 1 + epsilon_high."
    )
    loss_type: str = option(
        "dapo",
        "Clipped losses by the unit of their mean: dapo and bnpo, all tokens of the step; grpo, the tokens of each "
        "answer, then answers; dr_grpo, answers times max_new_tokens; luspo, answers, each times its length. Others: "
        "cispo limits the weights to epsilon_high; sapo has a smooth gate; vespo weighs whole answers.",
        choices=["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"],
    )
    sapo_temperature_pos: float = option(1.0, "sapo: temperature of the gate for answers better than the others.")
    sapo_temperature_neg: float = option(1.05, "sapo: temperature of the gate for the others.")
    vespo_k_pos: float = option(2.0, "vespo: exponent of the ratio, for answers better than the others.")
    vespo_lambda_pos: float = option(3.0, "vespo: decay with the ratio, for answers better than the others.")
    vespo_k_neg: float = option(3.0, "vespo: exponent of the ratio, for the others.")
    vespo_lambda_neg: float = option(2.0, "vespo: decay with the ratio, for the others.")
    scale_rewards: str = option(
        "group", "Divisor of the advantages: the deviation of the group, of the batch, or none (Dr. GRPO).",
        choices=["group", "batch", "none"],
    )  # fmt: skip
    importance_sampling_level: str = option(
        "token", "Unit of the ratios: tokens, or whole sequences, per token (GSPO).", choices=["token", "sequence"]
    )
    top_entropy_quantile: float = option(
        1.0, "Share of a step's tokens that train, those of the highest entropy (0.2 in the paper); 1: all."
    )
    use_bias_correction_kl: bool = option(True, "Weight the KL with the ratio, as TRL does.")

    def __post_init__(self) -> None:
        given: object = self.scale_rewards  # TRL's older values
        if isinstance(given, bool):
            self.scale_rewards = "group" if given else "none"
        super().__post_init__()

    def _validate(self) -> None:
        super()._validate()
        self._check_surrogate()
        if not 0 <= self.top_entropy_quantile <= 1:
            raise ConfigError(f"top_entropy_quantile={self.top_entropy_quantile} must be between 0 and 1.")

    @property
    def surrogate(self) -> Surrogate:
        """What the loss makes of ratio and advantage."""
        if self.loss_type == "cispo":
            return Cispo(_CISPO_LIMIT if self.epsilon_high is None else self.epsilon_high)
        if self.loss_type == "sapo":
            return Sapo(self.sapo_temperature_pos, self.sapo_temperature_neg)
        if self.loss_type == "vespo":
            return Vespo(self.vespo_k_pos, self.vespo_lambda_pos, self.vespo_k_neg, self.vespo_lambda_neg)
        return Clipped(*self.epsilons, self.delta)

    def _check_surrogate(self) -> None:
        """Raises: ConfigError for options that the loss does not have, or has other limits for."""
        if self.loss_type == "cispo" and self.epsilon_high is not None and self.epsilon_high <= 1:
            raise ConfigError(
                f"epsilon_high={self.epsilon_high} is the upper limit of the ratio itself with loss_type='cispo', so "
                f"that a limit of 1 or less only scales the learning rate. Give {_CISPO_LIMIT:g}, or leave it out."
            )
        read = _READ.get(self.loss_type, ("epsilon", "epsilon_high", "delta"))
        for entry in fields(self):
            unread = entry.name in _OF_LOSSES and entry.name not in read
            if unread and getattr(self, entry.name) != entry.default:
                raise ConfigError(f"{entry.name} has no effect with loss_type={self.loss_type!r}: remove it.")
        if self.delta is not None and not self.delta > 1 + self.epsilons[1]:
            raise ConfigError(
                f"delta={self.delta} must be above 1 + epsilon_high = {1 + self.epsilons[1]:g}, which is already the "
                "limit."
            )
        sequence = self.importance_sampling_level == "sequence"
        if self.loss_type == "luspo" and not sequence:
            raise ConfigError("loss_type='luspo' is a loss of whole answers. Set importance_sampling_level='sequence'.")
        if self.loss_type == "vespo" and sequence:
            raise ConfigError(
                "loss_type='vespo' weighs whole answers by itself. Leave importance_sampling_level at 'token'."
            )
        for name in (*_READ["sapo"], *_READ["vespo"]):
            value, may_be_0 = getattr(self, name), name.startswith("vespo_k")
            if not (math.isfinite(value) and (value > 0 or (value == 0 and may_be_0))):
                least = ", 0 or above" if may_be_0 else " above 0"
                raise ConfigError(f"{name}={value} must be a finite number{least}.")


@dataclass
class RLOOConfig(GroupConfig):
    """Configuration of `RLOOTrainer`."""

    num_generations: int = option(2, "Number of answers to each prompt (K), at least 2.")
    beta: float = option(0.05, "Strength of the KL penalty, which is part of the reward; 0 needs no reference.")
    normalize_advantages: bool = option(False, "Normalise the advantages of a step to mean 0 and deviation 1.")
