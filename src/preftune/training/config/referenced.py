"""`ReferencedConfig`: common fields of trainers whose loss compares the policy with a reference."""

from __future__ import annotations

from dataclasses import dataclass

from preftune.errors import ConfigError
from preftune.training.config.base import PairConfig
from preftune.training.config.options import option


@dataclass
class ReferenceFields:
    """The common fields of trainers with a reference."""

    disable_dropout: bool = option(True, "Train without dropout, LoRA's included, as the loss assumes.")
    allow_reference_mismatch: bool = option(
        False, "Accept, on purpose, a ref_model that disagrees with the policy before the first step."
    )
    guard: str = option(
        "off",
        "Watch the run for degenerate answers and abnormal figures: off, warn, stop at an alarm, or rollback to the "
        "last good weights and stop. The default of the command line is warn.",
        choices=["off", "warn", "stop", "rollback"],
    )


@dataclass
class MovingReferenceFields:
    """The common fields of trainers whose reference can follow the policy, under TRL's names."""

    sync_ref_model: bool = option(
        False,
        "Let the reference follow the policy (TR-DPO). This costs a copy of the trainable weights and one "
        "forward pass per step.",
    )
    ref_model_mixup_alpha: float = option(
        0.6, "Fraction by which the reference moves towards the policy, above 0; 1: it becomes the policy."
    )
    ref_model_sync_steps: int = option(512, "Optimiser steps between two moves.")

    def _check_moves(self) -> None:
        alpha, steps = self.ref_model_mixup_alpha, self.ref_model_sync_steps
        if not 0 < alpha <= 1:
            raise ConfigError(f"ref_model_mixup_alpha={alpha} must be above 0 and at most 1. TR-DPO uses 0.6.")
        if steps < 1:
            raise ConfigError(f"ref_model_sync_steps={steps} must be at least 1. TR-DPO uses 512.")
        if not self.sync_ref_model and (alpha, steps) != (0.6, 512):
            raise ConfigError(
                "ref_model_mixup_alpha and ref_model_sync_steps have no effect without sync_ref_model=True. Add it, or "
                "remove them."
            )


@dataclass
class ReferencedConfig(MovingReferenceFields, ReferenceFields, PairConfig):
    """The common fields of trainers that score their rows with a reference."""

    beta: float = option(0.1, "Strength of the KL penalty. A higher beta keeps the policy closer to the reference.")
    precompute_ref_log_probs: bool = option(
        False, "Score all rows with the reference before the first step (full fine-tuning always does)."
    )
    precompute_ref_batch_size: int | None = option(
        None, "Number of rows scored at a time in that pass. Default: per_device_eval_batch_size."
    )
    reference_cache: bool = option(True, "Keep reference scores on disk, for later epochs, runs and sweeps.")

    # --- the guard ---
    guard_budget: float = option(
        0.05,
        "Maximum share of the run's time that the guard may take, 0 to 0.5; 0: it reads only the training figures.",
    )
    guard_prompts: int | str | None = option(
        None,
        "Number of the guard's prompts, taken from the held-out rows (without those, from the training rows), or a "
        "file with prompts. Default: 8.",
    )

    @property
    def loss(self) -> str:
        """The name of the loss; of several the first."""
        raise NotImplementedError

    def _validate(self) -> None:
        super()._validate()
        self._at_least_1("precompute_ref_batch_size")
        self._validate_guard()
        self._check_moves()
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ConfigError(
                "precompute_ref_log_probs=True scores with a fixed reference, but sync_ref_model=True moves it. Leave "
                "one out."
            )

    def _validate_guard(self) -> None:
        if not 0 <= self.guard_budget <= 0.5:
            raise ConfigError(
                f"guard_budget={self.guard_budget} must be between 0 and 0.5: 0.05 is a twentieth of the time."
            )
        number = str(self.guard_prompts).strip() if self.guard_prompts is not None else ""
        if number.lstrip("-").isdigit():
            self.guard_prompts = int(number)
            if int(number) < 2:
                raise ConfigError(f"guard_prompts={number}: give at least 2, or a file with one prompt per line.")
        if self.guard == "rollback" and self.load_best_model_at_end:
            raise ConfigError(
                "guard='rollback' and load_best_model_at_end=True would both choose the weights in the end. Use "
                "guard='stop' with load_best_model_at_end, or leave load_best_model_at_end out."
            )
