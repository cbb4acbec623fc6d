"""`DPOConfig`: TrainingArguments with TRL's names for preference optimisation, validated when it is built."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from preftune.errors import ConfigError
from preftune.losses.registry import get_loss
from preftune.training.refused import refuse_unsupported
from preftune.training.secrets import without_secrets
from preftune.training.trackers import check_installed

FULL_LEARNING_RATE = 5e-7
ADAPTER_LEARNING_RATE = 5e-6


def _option(default: Any, help: str, **extra: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **extra})
    return field(default=default, metadata={"help": help, **extra})


@dataclass
class DPOConfig(TrainingArguments):
    """Configuration of `DPOTrainer`: every field of `transformers.TrainingArguments`, and those below.

    Names follow TRL 1.16, so a TRL script or YAML runs with the import changed. A field is honoured or refused with a
    `ConfigError` that names its successor or the reason; none is ignored. Two kinds of defaults differ from TRL's:
    `learning_rate` is 5e-7 for full fine-tuning and 5e-6 for adapters, where TRL has 1e-6 for both; precision and
    checkpointing follow the hardware. What is left to the model stays None until a trainer has one.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    # --- defaults that differ from TrainingArguments ---
    learning_rate: float | None = _option(  # type: ignore[assignment]
        None, "Initial learning rate. Default: 5e-7 for full fine-tuning, 5e-6 for adapters."
    )
    logging_steps: float = _option(10, "Log every so many optimiser steps; below 1, a share of all steps.")
    bf16: bool | None = _option(  # type: ignore[assignment]
        None, "bfloat16 autocast. Default: where the hardware has it (on a CPU: when the model's weights are bfloat16)."
    )
    gradient_checkpointing: bool | None = _option(
        None, "Recompute activations in the backward pass to save memory. Default: on for CUDA, off for a CPU."
    )
    logging_nan_inf_filter: bool = _option(False, "Refused when set: it would hide NaN losses.")

    # --- the loss ---
    loss_type: list[str] = _option(["sigmoid"], "The loss: sigmoid, robust, hinge or ipo.")
    beta: float = _option(0.1, "Strength of the KL penalty. A higher beta keeps the policy closer to the reference.")
    label_smoothing: float = _option(0.0, "Probability that a label is flipped, for sigmoid (cDPO) and robust.")

    # --- the data ---
    max_length: int | None = _option(1024, "Longest prompt plus completion, in tokens; None: no limit.")
    max_prompt_length: int | None = _option(None, "Longest prompt, in tokens; a longer one loses its beginning.")
    truncation: str = _option(
        "truncate",
        "What happens to rows beyond the limits: truncate them, drop them, or stop with an error. Always reported.",
        choices=["truncate", "drop", "error"],
    )
    dataset_num_proc: int | None = _option(None, "Processes that tokenise.")
    group_by_prompt: bool = _option(
        False,
        "Rows with the same prompt train as one group: each distinct completion is computed once, the loss stays the "
        "mean over pairs. Batch sizes then count groups: with six pairs per prompt a batch of 8 is about 48 pairs. A "
        "group holds at most 4 x max_length tokens.",
    )
    max_tokens_per_batch: int | None = _option(
        None, "Most tokens computed at a time; a step is split into so many parts, and its update stays the same."
    )

    # --- the model ---
    model_init_kwargs: dict[str, Any] | str | None = _option(None, "Keywords for loading a model given by name.")
    trust_remote_code: bool = _option(False, "Allow models and tokenizers that bring their own Python code.")
    disable_dropout: bool = _option(True, "Train without dropout, LoRA's included, as the DPO loss assumes.")

    # --- the reference ---
    precompute_ref_log_probs: bool = _option(
        False, "Score all rows with the reference before the first step (full fine-tuning always does)."
    )
    precompute_ref_batch_size: int | None = _option(
        None, "Pairs scored at a time in that pass. Default: per_device_eval_batch_size."
    )
    reference_cache: bool = _option(True, "Keep reference scores on disk, for later epochs, runs and sweeps.")
    allow_reference_mismatch: bool = _option(
        False, "Accept a ref_model that disagrees with the policy before the first step: I mean it."
    )

    # --- the run ---
    engine: str = _option(
        "auto",
        "How log-probabilities are computed: packed where exact, else separate; naive is the oracle.",
        choices=["auto", "packed", "separate", "naive"],
    )
    early_stopping_patience: int | None = _option(
        None, "Stop when the evaluation metric has not improved for so many evaluations."
    )
    early_stopping_threshold: float = _option(0.0, "How much better counts as an improvement.")

    # --- the guard ---
    guard: str = _option(
        "off",
        "Watch the run for answers that degenerate and figures that go wrong: off, warn, stop at an alarm, or rollback "
        "to the last good weights and stop. The command line's default is warn.",
        choices=["off", "warn", "stop", "rollback"],
    )
    guard_budget: float = _option(
        0.05, "Most of the run's time that the guard may take, 0 to 0.5; 0: it reads the training figures only."
    )
    guard_prompts: str | None = _option(
        None,
        "How many prompts of the held-out rows (of the training rows, if there are none) it asks, or a file of its "
        "own prompts. Default: 8.",
    )

    # --- fields of TRL's that preftune refuses unless they have no effect (see refused.py) ---
    router_aux_loss_coef: float | None = _option(None, "Only 0 or unset: no auxiliary router loss is added.")
    truncation_mode: str = _option("keep_start", "Only keep_start.", choices=["keep_start", "keep_end"])
    max_completion_length: int | None = _option(None, "Refused: use max_length.")
    padding_free: bool = _option(False, "Accepted: preftune never pads.")
    pad_to_multiple_of: int | str | None = _option("auto", "Only auto or unset: preftune never pads.")
    loss_weights: list[float] | None = _option(None, "Only unset, or [1.0].")
    ld_alpha: float | None = _option(None, "Only unset.")
    f_divergence_type: str = _option("reverse_kl", "Only reverse_kl.")
    f_alpha_divergence_coef: float = _option(0.5, "Only its default.")
    use_weighting: bool = _option(False, "Only False: give pairs a `weight` column.")
    discopop_tau: float = _option(0.05, "Only its default.")
    activation_offloading: bool = _option(False, "Only False.")
    sync_ref_model: bool = _option(False, "Only False.")
    ref_model_mixup_alpha: float = _option(0.6, "Only its default.")
    ref_model_sync_steps: int = _option(512, "Only its default.")
    pad_token: str | None = _option(None, "Only unset: preftune never pads.")
    reference_free: bool = _option(False, "Refused.")
    rpo_alpha: float | None = _option(None, "Refused.")
    generate_during_eval: bool = _option(False, "Refused: preftune chat and the evaluation commands generate.")

    def to_dict(self) -> dict[str, Any]:
        """As transformers has it and trackers are given it, without the secrets inside `model_init_kwargs`."""
        return dict(without_secrets(super().to_dict()))

    def __post_init__(self) -> None:
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        refuse_unsupported(self)
        self._validate_preference_fields()
        self._resolve_hardware()
        self._resolve_early_stopping()
        self.automatic_learning_rate = self.learning_rate is None
        if self.learning_rate is None:
            self.learning_rate = FULL_LEARNING_RATE  # the trainer knows whether there is an adapter and corrects it
        # transformers would have accelerate compile the model around our hooks; see logps/compiled.py
        asked = self.torch_compile, self.torch_compile_backend, self.torch_compile_mode
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        try:
            super().__post_init__()
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{error}") from error
        check_installed(self.report_to)
        self.torch_compile = any(asked)
        _, self.torch_compile_backend, self.torch_compile_mode = asked
        self._leave_the_rest_to_the_model()

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return self.loss_type[0]

    def _validate_preference_fields(self) -> None:
        loss = get_loss(self.loss)
        _positive("beta", self.beta, "0.1 is a safe start; a higher beta keeps the policy closer to the reference")
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ConfigError(f"learning_rate={self.learning_rate} must be a finite number, 0 or above.")
        if loss.smoothing_limit is None and self.label_smoothing:
            raise ConfigError(
                f"label_smoothing={self.label_smoothing} has no meaning for loss_type={self.loss!r}. "
                "Leave it at 0, or use loss_type='sigmoid' (cDPO) or 'robust'."
            )
        if loss.smoothing_limit is not None and not 0 <= self.label_smoothing <= loss.smoothing_limit:
            raise ConfigError(f"label_smoothing={self.label_smoothing} must lie in 0..0.5 for loss_type={self.loss!r}.")
        at_least_1 = ("max_length", "max_prompt_length", "max_tokens_per_batch", "precompute_ref_batch_size")
        for name in (*at_least_1, "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or left unset.")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a completion within "
                f"max_length={self.max_length}. Raise max_length or lower max_prompt_length."
            )
        optimiser = str(getattr(self.optim, "value", self.optim))
        if "lomo" in optimiser or "layerwise" in optimiser:
            raise ConfigError(
                f"optim={optimiser!r} changes weights during the backward pass, while the step may still be split, or "
                "begun again when memory runs out. Use optim='adamw_torch_fused', or 'adafactor' to save memory."
            )
        self._validate_guard()
        _one_of("truncation", self.truncation, ("truncate", "drop", "error"))
        _one_of("engine", self.engine, ("auto", "packed", "separate", "naive"))

    def _validate_guard(self) -> None:
        self.guard = "off" if self.guard is False else self.guard  # what YAML makes of off
        _one_of("guard", self.guard, ("off", "warn", "stop", "rollback"))
        if not 0 <= self.guard_budget <= 0.5:
            raise ConfigError(f"guard_budget={self.guard_budget} must lie in 0..0.5: 0.05 is a twentieth of the time.")
        number = str(self.guard_prompts).strip() if self.guard_prompts is not None else ""
        if number.lstrip("-").isdigit():
            self.guard_prompts = int(number)  # type: ignore[assignment]
            if int(number) < 2:
                raise ConfigError(f"guard_prompts={number}: give at least 2, or a file with one prompt a line.")
        if self.guard == "rollback" and self.load_best_model_at_end:
            raise ConfigError(
                "guard='rollback' and load_best_model_at_end=True would both choose the weights in the end. Use "
                "guard='stop' with load_best_model_at_end, or leave load_best_model_at_end out."
            )

    def _leave_the_rest_to_the_model(self) -> None:
        """Undo what TrainingArguments had to be told before a model is known: a copy of this configuration
        (`dataclasses.replace`) must choose for itself again.
        """
        if self.automatic_learning_rate:
            self.learning_rate = None
        if self.automatic_precision:
            self.bf16, self.fp16 = None, False

    def _resolve_hardware(self) -> None:
        """Autocast and checkpointing defaults for the device at hand; a program written for a GPU runs on a CPU too."""
        import torch

        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available() or _has_xpu()
        if not accelerator:
            self.use_cpu = True
        cuda = torch.cuda.is_available() and not self.use_cpu
        self.automatic_precision = self.bf16 is None and not self.fp16
        if self.bf16 is None:
            self.bf16 = cuda and not self.fp16 and torch.cuda.get_device_capability() >= (8, 0)
            self.fp16 = self.fp16 or (cuda and not self.bf16)
        if self.fp16 and not cuda:
            raise ConfigError(
                "fp16=True needs a CUDA device: on a CPU half precision is bf16=True, or leave both unset."
            )
        if self.bf16 and cuda and torch.cuda.get_device_capability() < (8, 0):
            name = torch.cuda.get_device_name()
            raise ConfigError(f"bf16=True, but {name} has no bfloat16. Use fp16=True, or leave both unset.")
        renamed = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # transformers 5.17: not yet
        old_name, new_name = self.gradient_checkpointing, self.activation_checkpointing if renamed else None
        wanted = new_name if new_name is not None else old_name
        self.activation_checkpointing = cuda if wanted is None else wanted
        if renamed:
            self.activation_checkpointing_kwargs = (
                self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
            )
        else:
            self.gradient_checkpointing = self.activation_checkpointing

    def _resolve_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            return
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no":
            raise ConfigError(
                "early_stopping_patience needs evaluations to watch. Pass eval_strategy='steps' (with eval_steps) and "
                "an eval_dataset."
            )
        if self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "loss", False


def _positive(name: str, value: float, advice: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value} must be a finite number above 0: {advice}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} must be one of {', '.join(allowed)}.")


def _has_xpu() -> bool:
    import torch

    return hasattr(torch, "xpu") and torch.xpu.is_available()
