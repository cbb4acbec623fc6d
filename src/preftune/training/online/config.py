"""The options of training on fresh answers: what is sampled, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from preftune.errors import ConfigError
from preftune.judges.ensemble import HOWS
from preftune.training.config.base import PackedConfig, positive
from preftune.training.config.dpo import DPOConfig
from preftune.training.config.options import option
from preftune.training.config.referenced import MovingReferenceFields, ReferenceFields
from preftune.training.config.refused import REFUSED, Refusal


@dataclass
class SamplingConfig(ReferenceFields, PackedConfig):
    """What `PPOConfig` and `OnlineDPOConfig` share. The comments name where a default comes from."""

    no_eval_judge: ClassVar[str] = (
        "nothing is evaluated while answers are sampled; they are judged afterwards, with preftune eval"
    )

    honoured: ClassVar[Collection[str]] = ()
    """Options of `_NOT_HONOURED` that a method has."""

    max_new_tokens: int = option(64, "Maximum length of an answer, in tokens (TRL's PPOConfig: response_length).")
    max_prompt_length: int | None = option(
        512, "Maximum length of a prompt, in tokens; longer prompts are left out and counted. None: no limit."
    )
    max_length: int | None = option(None, "Refused; its successors are max_prompt_length and max_new_tokens.")
    temperature: float = option(
        1.0, "Sampling temperature. 1 samples from the policy itself; other values scale its log-probabilities too."
    )
    generation_batch_size: int = option(16, "Number of answers sampled at a time.")
    use_vllm: bool = option(False, "Sample with vLLM, on a GPU where it is installed.")
    total_episodes: int | None = option(
        None, "Total number of answers to sample (TRL's name). Default: num_train_epochs times the prompts."
    )
    reward_model: list[str] = option(
        [],
        "The reward: a reward model (folder or hub id), exact, key-fact, length:WORDS, format:REGEX, "
        "rule:MODULE:FUNCTION, openai:MODEL@URL or local:MODEL. Several form an ensemble (GRPO and RLOO add them).",
    )
    reward_ensemble: str = option("mean", "How several scores are combined.", choices=list(HOWS))
    judge_thoughts: bool = option(
        False, "Score the reasoning that a thinking model writes before its answer as part of the answer."
    )
    missing_eos_penalty: float | None = option(
        None, "Points subtracted from answers that max_new_tokens cut, above 0 (TRL's name; 1.0 in its examples)."
    )

    def _resolve_sharding(self) -> None:
        super()._resolve_sharding()
        if self.sharding is not None:
            raise ConfigError(
                "fsdp is not honoured: methods that sample answers are not sharded yet. Leave it out (and start "
                "without accelerate's FSDP config); use torchrun with LoRA, or a larger device."
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_what_has_no_meaning()

    def _validate(self) -> None:
        for name in ("max_new_tokens", "generation_batch_size", "max_prompt_length", "total_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(
                f"temperature={self.temperature} must be above 0: answers are explored by sampling. 1 is usual."
            )
        if self.missing_eos_penalty is not None:
            positive("missing_eos_penalty", self.missing_eos_penalty, "it is subtracted; leave it out for no penalty")
        super()._validate()

    def _refuse_what_has_no_meaning(self) -> None:
        """Raises: ConfigError for an inherited option that training on fresh answers cannot honour."""
        for name, (harmless, reason) in _NOT_HONOURED.items():
            if name in self.honoured:
                continue
            value = getattr(self, name, harmless)
            value = getattr(value, "value", value)
            if value != harmless:
                raise ConfigError(f"{name}={value!r} is not honoured where answers are sampled: {reason}.")
        if self.plan_only:
            raise ConfigError(
                "plan_only=True: the lengths of answers that are still to be sampled are not known. Leave it out."
            )


_NOT_HONOURED = {
    "eval_strategy": ("no", "answers to held-out prompts are judged afterwards, with preftune eval; remove it"),
    "eval_on_start": (False, "nothing is evaluated during training; remove it"),
    "load_best_model_at_end": (False, "nothing is evaluated during training; remove it"),
    "torch_compile": (False, "sampling and training would each compile anew; remove it"),
    "dataloader_num_workers": (0, "batches are sampled from the policy, not loaded; remove it"),
    "dataloader_drop_last": (False, "every step is full; remove it"),
    "group_by_prompt": (False, "answers to one prompt always form one group; remove it"),
    "precompute_ref_log_probs": (False, "the answers do not exist before training; remove it"),
    "reference_cache": (True, "every answer is new, so no score can be cached; remove it"),
    "max_length": (None, "its successors are max_prompt_length and max_new_tokens; remove it"),
    "truncation": ("truncate", "prompts beyond max_prompt_length are left out; remove it"),
    "early_stopping_patience": (None, "nothing is evaluated during training; remove it"),
    "guard_budget": (0.05, "the guard reads the answers that are sampled anyway; remove it"),
    "guard_prompts": (None, "the guard reads the answers that are sampled anyway; remove it"),
    "shuffle_buffer": (None, "prompts are drawn from all rows; remove it"),
    "dataset_num_proc": (None, "prompts are tokenised by this process; remove it"),
}


def check_reward_weights(weights: Sequence[float] | None) -> None:
    """Raises: ConfigError for weights with which no reward would train."""
    if weights is not None and not (all(map(math.isfinite, weights)) and any(weights)):
        raise ConfigError(f"reward_weights={weights} must be finite numbers, and not all 0. 1 each is usual.")


@dataclass
class JudgedConfig(SamplingConfig):
    """The common fields of trainers whose answers a judge compares."""

    num_train_epochs: float = option(1.0, "Passes over the prompts.")
    num_generations: int = option(2, "Number of answers to each prompt that are compared (K), at least 2.")
    judge: str | None = option(
        None,
        "Judge that compares the answers, instead of reward_model: openai:MODEL@URL, local:MODEL, reward:MODEL, "
        "rule:MODULE:FUNCTION, shorter, longer, key-fact, exact.",
    )
    reward_weights: list[float] | None = option(None, "Weight of each of several reward_funcs. Default: 1 each.")

    def _validate(self) -> None:
        if self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations} must be at least 2, because answers are compared."
            )
        if self.judge is not None and self.reward_model:
            raise ConfigError("judge and reward_model both say which answer is better. Give one of them.")
        check_reward_weights(self.reward_weights)
        super()._validate()

    def _check_two_players(self) -> None:
        if self.num_generations != 2:
            raise ConfigError(
                f"num_generations={self.num_generations} must be 2: the policy's answer and its opponent's."
            )
        if self.use_vllm:
            raise ConfigError(
                "use_vllm=True is not honoured: vLLM serves only the policy, but another model answers too. Leave it "
                "out."
            )


@dataclass
class OnlineDPOConfig(JudgedConfig, DPOConfig):
    """Configuration of `OnlineDPOTrainer`: every field of `DPOConfig` that has a meaning here, and sampling.

    Guo et al. 2024, "Direct Language Model Alignment from Online AI Feedback" (arXiv:2402.04792).
    """

    max_prompt_length: int | None = option(
        512, "Maximum length of a prompt, in tokens; longer prompts are left out and counted. None: no limit."
    )
    temperature: float = option(
        1.0, "Sampling temperature; higher for more different answers. It does not scale the log-probabilities."
    )
    which_pairs: str = option(
        "best-worst", "The pairs of K answers that are trained on.", choices=["best-worst", "all", "adjacent"]
    )

    def _validate(self) -> None:
        super()._validate()
        if self.objective().needs_margins:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)} fits rewards to differences of ratings, but the pairs of a "
                "judge are not rated. Use another loss: sigmoid, ipo, simpo."
            )
        objective = self.objective()
        if objective.needs_gold:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)} imitates gold answers, which is not honoured where answers are "
                "sampled. Set tpo_alpha=0, or use another loss."
            )
        if objective.takes_lists:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)} takes ranked lists, which is not honoured where answers are "
                "sampled, because a judge makes pairs. Use a loss of pairs: sigmoid, ipo, simpo."
            )
        if objective.sorts or objective.gap is not None or objective.needs_running_mean:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)} uses more than the pairs of one prompt's answers, which is not "
                "honoured where answers are sampled. Use another loss, or bco_running_mean=False."
            )


@dataclass
class XPOConfig(OnlineDPOConfig):
    """Configuration of `XPOTrainer`: online DPO with an exploration term."""

    alpha: list[float] = option(
        [1e-5],
        "Weight of the exploration term, 0 or above; a list gives one weight for each pass over the prompts.",
    )

    def _validate(self) -> None:
        _check_by_epoch("alpha", self.alpha, most=math.inf)
        self._check_two_players()
        super()._validate()
        if not self.objective().needs_reference:
            raise ConfigError(
                f"loss_type={', '.join(self.loss_type)} has no reference, but XPO needs one. Use sigmoid or ipo."
            )


@dataclass
class NashMDConfig(MovingReferenceFields, JudgedConfig):
    """Configuration of `NashMDTrainer`."""

    full_learning_rate: ClassVar[float] = 5e-7
    adapter_learning_rate: ClassVar[float] = 5e-6
    trls_rate: ClassVar[float] = 5e-7
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED

    beta: float = option(0.1, "Strength of the KL penalty (tau of the paper).")
    mixture_coef: list[float] = option(
        [0.5],
        "Weight of the reference in the mixture that is the policy's opponent, 0 (the policy) to 1 (the reference); "
        "a list gives one weight for each pass over the prompts.",
    )

    def _validate(self) -> None:
        _check_by_epoch("mixture_coef", self.mixture_coef, most=1.0)
        self._check_two_players()
        positive("beta", self.beta, "0.1 is usual")
        self._check_moves()
        super()._validate()


def _check_by_epoch(name: str, values: Sequence[float], *, most: float) -> None:
    if not values or not all(0 <= value <= most and math.isfinite(value) for value in values):
        above = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(
            f"{name}={values} must be 0 or above{above}: a number, or one for each pass over the prompts."
        )
