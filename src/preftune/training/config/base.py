"""`PackedConfig`: the options of every trainer on packed groups."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import TrainingArguments

from preftune.errors import ConfigError
from preftune.secret_values import is_secret, without_secrets
from preftune.training.config.eval_judge import JudgedEvaluationFields
from preftune.training.config.kinds import settle_kinds
from preftune.training.config.options import option
from preftune.training.config.refused import Refusal, refuse_unsupported
from preftune.training.config.sharding import Sharding, sharding_of
from preftune.training.config.trackers import check_installed, check_trackers

SAVE_SECONDS = 600.0
SAVE_TOTAL_LIMIT = 2
"""The default if the user does not set when checkpoints are written."""


@dataclass
class PackedConfig(JudgedEvaluationFields, TrainingArguments):
    """The fields of `transformers.TrainingArguments`, and the common fields of preftune's trainers.

    A field is honoured or refused with a `ConfigError` that names its successor or the reason; none is ignored. Values
    that depend on the model are None until a trainer has a model."""

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012
    full_learning_rate: ClassVar[float]
    """The default learning rate if all weights are trained."""
    adapter_learning_rate: ClassVar[float]
    trls_rate: ClassVar[float]
    refused: ClassVar[Mapping[str, Refusal]]

    if TYPE_CHECKING:
        output_dir: str = ""  # transformers sets one where none is given

    # --- defaults that differ from TrainingArguments ---
    learning_rate: float | None = option(  # type: ignore[assignment]
        None, "Initial learning rate. The default for adapters is higher than that for full fine-tuning."
    )
    logging_steps: float = option(10, "Optimiser steps between two log lines; below 1, a share of all steps.")
    bf16: bool | None = option(  # type: ignore[assignment]
        None, "bfloat16 autocast. Default: if the hardware has it (on a CPU: if the model's weights are bfloat16)."
    )
    gradient_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass to save memory. Default: on for CUDA, off on a CPU."
    )
    save_strategy: str | None = option(  # type: ignore[assignment]
        None,
        "When checkpoints are written: no, steps, epoch or best. Default: after each epoch and every ten minutes.",
        choices=["no", "steps", "epoch", "best"],
    )
    save_steps: float | None = option(  # type: ignore[assignment]
        None, "Steps between two checkpoints (below 1: a share of all steps), for save_strategy steps. Default: 500."
    )
    save_total_limit: int | None = option(
        None,
        "Number of checkpoints to keep. Default: the last two, or all if save_strategy or save_steps is given.",
    )
    save_seconds: float | None = option(
        None,
        "Also write a checkpoint this many seconds after the last one. Default: 600, unless a strategy is given.",
    )
    logging_nan_inf_filter: bool = option(False, "Refused if set: it would hide NaN losses.")

    # --- the data ---
    max_length: int | None = option(
        1024, "Maximum length of a row (prompt plus completion), in tokens; None: no limit."
    )
    truncation: str = option(
        "truncate",
        "Treatment of rows beyond the limits: truncate them, drop them, or stop with an error. It is always reported.",
        choices=["truncate", "drop", "error"],
    )
    dataset_num_proc: int | None = option(None, "Number of processes that tokenise.")
    shuffle_buffer: int | None = option(
        None,
        "Rows of a stream among which the next one is drawn, with the seed; 0 keeps their order. Default for a stream: "
        "1,000. Other data are shuffled whole.",
    )
    max_tokens_per_batch: int | None = option(
        None, "Maximum number of tokens computed at a time; a step is split into parts, and its update stays the same."
    )

    # --- the model ---
    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "Keyword arguments for loading a model given by name."
    )
    trust_remote_code: bool = option(False, "Allow models and tokenizers that bring their own Python code.")

    # --- the run ---
    engine: str = option(
        "auto",
        "How completions are scored: packed if that is exact, otherwise separate; naive is the oracle.",
        choices=["auto", "packed", "separate", "naive"],
    )
    early_stopping_patience: int | None = option(
        None, "Stop when the evaluation metric has not improved for this many evaluations."
    )
    early_stopping_threshold: float = option(0.0, "Minimum change that counts as an improvement.")
    max_seconds: float | None = option(
        None, "End the run after the step in which it has trained for this many seconds."
    )
    max_train_tokens: int | None = option(
        None, "End the run after the step in which it has trained on this many tokens (sampled ones count too)."
    )

    overwrite: bool = option(
        False,
        "Remove the files of an earlier run in output_dir. By default they are moved to output_dir/_earlier.",
        aliases=["--overwrite_output_dir"],
    )
    allow_changed: bool = option(
        False, "Resume although settings or data that affect the updates have changed since the checkpoint."
    )

    plan_only: bool = option(False, "Report memory and time of the run, and stop before the model is loaded.")

    save_dtype: str | None = option(
        None,
        "Number format of the saved weights; by default that of the model as received.",
        choices=["float32", "bfloat16", "float16"],
    )

    # --- fields of TRL's that preftune refuses unless they have no effect (see refused.py) ---
    pad_to_multiple_of: int | str | None = option("auto", "Only auto or unset: preftune never pads.")
    activation_offloading: bool = option(False, "Only False.")
    pad_token: str | None = option(None, "Only unset: preftune never pads.")

    @property
    def rows_per_step(self) -> int:
        """Groups of an optimiser step, on all processes together."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for trackers too, without the secrets inside `model_init_kwargs`."""
        return dict(without_secrets(super().to_dict()))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickle, without secrets: transformers writes it to training_args.bin, which is uploaded to the
        hub.
        """
        state = dict(self.__dict__)
        for name, value in state.items():
            if is_secret(name):
                state[name] = None
            elif isinstance(value, str | dict | list):
                state[name] = without_secrets(value)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy in memory, which keeps everything."""
        new = self.__copy__()
        new.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return new

    def __copy__(self) -> Any:
        new = object.__new__(type(self))
        new.__dict__ = dict(self.__dict__)
        return new

    def __post_init__(self) -> None:
        refuse_unsupported(self, self.refused)
        settle_kinds(self)
        self._resolve_sharding()
        self._validate()
        self._resolve_hardware()
        self._resolve_early_stopping()
        self._resolve_saving()
        self.automatic_learning_rate = self.learning_rate is None
        if self.learning_rate is None:
            self.learning_rate = self.full_learning_rate  # the trainer knows whether there is an adapter, and corrects
        # transformers would have accelerate compile the model around our hooks; see logps/layers/compiled.py
        asked = self.torch_compile, self.torch_compile_backend, self.torch_compile_mode
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        # nor is it accelerate that shards; see training/setup/sharding.py
        sharded, self.fsdp = self.fsdp, None
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{error}") from error
        if getattr(self.accelerator_config, "dispatch_batches", None):
            raise ConfigError(
                "accelerator_config={'dispatch_batches': True} is not honoured: the first process would send tensors "
                "to the others, but preftune's batches are packed groups. Remove it: every process reads its own rows."
            )
        check_installed(self.report_to)
        self.fsdp = sharded
        self.torch_compile = any(asked)
        _, self.torch_compile_backend, self.torch_compile_mode = asked
        self._leave_the_rest_to_the_model()

    def _validate(self) -> None:
        """Raises: ConfigError that names field and value. Subclasses check their own fields too."""
        if self.output_dir is not None and not str(self.output_dir).strip():
            raise ConfigError(f"output_dir={self.output_dir!r} is not a folder. Name one, or leave it out.")
        self._check_saving()
        self._at_least_1("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        for name in ("weight_decay", "learning_rate", "max_grad_norm", "adam_epsilon"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value} must be a finite number, 0 or above.")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise ConfigError(
                    f"{name}={value} must be between 0 and {2**32 - 1}, the range of all random generators."
                )
        if self.max_steps < -1 or self.max_steps == 0:
            raise ConfigError(
                f"max_steps={self.max_steps} is not a number of steps. Give 1 or more; -1 trains num_train_epochs."
            )
        if self.max_steps < 1 and getattr(self, "total_episodes", None) is None:
            positive("num_train_epochs", self.num_train_epochs, "the run ends after this many passes over the data")
        check_trackers(self.report_to)
        self._check_judged_evaluation(eval_strategy=self.eval_strategy, sharding=self.sharding)
        if self.shuffle_buffer is not None and self.shuffle_buffer < 0:
            raise ConfigError(f"shuffle_buffer={self.shuffle_buffer} must be 0 or more.")
        self._at_least_1("max_length", "max_tokens_per_batch", "early_stopping_patience", "max_train_tokens")
        if self.max_seconds is not None:
            positive("max_seconds", self.max_seconds, "after this many seconds of training the run ends")
        optimiser = str(getattr(self.optim, "value", self.optim))
        if "lomo" in optimiser or "layerwise" in optimiser:
            raise ConfigError(
                f"optim={optimiser!r} changes weights during the backward pass, but a step may be split, or repeated "
                "when memory runs out. Use optim='adamw_torch_fused', or 'adafactor' to save memory."
            )

    def _check_saving(self) -> None:
        """transformers takes 0 for "never" in one of these fields and for "no limit" in another."""
        for name, instead in (("save_steps", "save_strategy='no' writes none"), ("eval_steps", "or leave it out")):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value}: give a number of steps, or a share below 1 of all; {instead}.")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ConfigError(
                f"save_total_limit={self.save_total_limit} must be at least 1. To keep all checkpoints, leave it out "
                "and give a save_strategy; save_strategy='no' writes none."
            )

    def _at_least_1(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or unset.")

    def _leave_the_rest_to_the_model(self) -> None:
        """Resets values that TrainingArguments needs before a model is known, so that a copy of this configuration
        (`dataclasses.replace`) chooses them again.
        """
        if self.automatic_learning_rate:
            self.learning_rate = None
        if self.automatic_precision:
            self.bf16, self.fp16 = None, False

    def _resolve_hardware(self) -> None:
        """Sets the defaults of autocast and activation checkpointing for the current device; a program written for a
        GPU runs on a CPU too.
        """
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

    def _resolve_sharding(self) -> None:
        """Sets `sharding` of `fsdp`, `fsdp_config` and the environment. transformers reads `xla` alone of them."""
        self.sharding: Sharding | None
        self.sharding, config = sharding_of(self.fsdp, self.fsdp_config, self.deepspeed, os.environ)
        if self.sharding is None:
            return
        self.fsdp, self.fsdp_config = self.fsdp or "full_shard", {"xla": False, **config}
        if self.sharding.activation_checkpointing:
            self.gradient_checkpointing = True

    def _resolve_saving(self) -> None:
        """Sets when checkpoints are written. transformers' 500 steps are longer than most runs of preference tuning."""
        self.enable_jit_checkpoint = (
            False  # a signal is answered with a checkpoint always (training/record/stopping.py)
        )
        if self.save_seconds is not None:
            positive("save_seconds", self.save_seconds, "a checkpoint is written after this many seconds")
        if self.save_strategy is not None or self.save_steps is not None:
            self.save_strategy = "steps" if self.save_strategy is None else self.save_strategy
            self.save_steps = 500 if self.save_steps is None else self.save_steps
            return
        self.save_strategy, self.save_steps = "epoch", 500
        evaluation = str(getattr(self.eval_strategy, "value", self.eval_strategy))
        if self.load_best_model_at_end and evaluation != "no":  # the best must have been saved
            self.save_strategy, self.save_steps = evaluation, self.eval_steps or self.logging_steps
        if self.save_seconds is None:
            self.save_seconds = SAVE_SECONDS
        if self.save_total_limit is None:
            self.save_total_limit = SAVE_TOTAL_LIMIT

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


@dataclass
class PairConfig(PackedConfig):
    """The common fields of trainers on preference pairs."""

    max_prompt_length: int | None = option(
        None, "Maximum length of a prompt, in tokens; a longer prompt loses its beginning."
    )
    group_by_prompt: bool = option(
        False,
        "Rows with the same prompt train as one group: each distinct completion is computed once, the loss stays the "
        "mean over pairs. Batch sizes then count groups: with six pairs per prompt a batch of 8 is about 48 pairs. A "
        "group holds at most 4 x max_length tokens.",
    )

    def _validate(self) -> None:
        super()._validate()
        self._at_least_1("max_prompt_length")
        if self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ConfigError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a completion within "
                f"max_length={self.max_length}. Raise max_length or lower max_prompt_length."
            )


def positive(name: str, value: float, advice: str) -> None:
    """Raises: ConfigError, for a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value} must be a finite number above 0: {advice}.")


def _has_xpu() -> bool:
    import torch

    return hasattr(torch, "xpu") and torch.xpu.is_available()
