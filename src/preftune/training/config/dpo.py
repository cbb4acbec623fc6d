"""`DPOConfig`: TrainingArguments with TRL's names for preference optimisation, validated when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from preftune.losses.registry import get_loss
from preftune.training.config.losses import LossFields
from preftune.training.config.options import option as _option
from preftune.training.config.referenced import ReferencedConfig
from preftune.training.config.refused import REFUSED, Refusal


@dataclass
class DPOConfig(LossFields, ReferencedConfig):
    """Configuration of `DPOTrainer`: every field of `transformers.TrainingArguments`, and those below.

    Names follow TRL 1.16, so a TRL script or YAML runs with the import changed. A field is honoured or refused with a
    `ConfigError` that names its successor or the reason; none is ignored. Four kinds of defaults differ from TRL's:
    `beta` is that of the loss's authors (0.1 for sigmoid); `learning_rate` is 5e-7 for full fine-tuning and 5e-6 for
    adapters (or the authors'), where TRL has 1e-6 for both; precision and activation checkpointing depend on the
    hardware; checkpoints are written after each epoch and every ten minutes, not every 500 steps. Values that depend on
    the model are None until a trainer has a model."""

    trls_rate: ClassVar[float] = 1e-6
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED

    # --- fields of TRL's that preftune refuses unless they have no effect (see refused.py) ---
    router_aux_loss_coef: float | None = _option(None, "Only 0 or unset: no auxiliary router loss is added.")
    truncation_mode: str = _option("keep_start", "Only keep_start.", choices=["keep_start", "keep_end"])
    max_completion_length: int | None = _option(None, "Refused: use max_length.")
    padding_free: bool = _option(False, "Accepted without effect: preftune never pads.")
    reference_free: bool = _option(False, "Refused.")
    generate_during_eval: bool = _option(False, "Refused; preftune chat and the evaluation commands generate answers.")

    @property
    def full_learning_rate(self) -> float:  # type: ignore[override]
        """The learning rate of the loss's authors."""
        return get_loss(self.loss).learning_rate

    @property
    def adapter_learning_rate(self) -> float:  # type: ignore[override]
        """Ten times the rate of full fine-tuning, as for every method."""
        return float(f"{10 * self.full_learning_rate:.6g}")  # not 4.9999999999999996e-06

    def _validate(self) -> None:
        self.settle_losses()
        super()._validate()
