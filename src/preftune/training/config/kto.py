"""`KTOConfig`: TrainingArguments with TRL's names for single answers with labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from preftune.errors import ConfigError
from preftune.training.config.base import positive
from preftune.training.config.options import option
from preftune.training.config.referenced import ReferencedConfig
from preftune.training.config.refused import REFUSED, Refusal


@dataclass(frozen=True)
class UnpairedObjective:
    """The objective of KTO, for code that reads a trainer's objective."""

    name: str
    needs_reference: ClassVar[bool] = True
    uses_margins: ClassVar[bool] = True
    needs_margins: ClassVar[bool] = False
    has_usual_beta: ClassVar[bool] = True

    @property
    def needs_running_mean(self) -> bool:
        """Whether the loss takes the mean of all rewards so far."""
        return self.name == "bco"


@dataclass
class KTOConfig(ReferencedConfig):
    """Configuration of `KTOTrainer`: every field of `transformers.TrainingArguments`, and those below, under TRL's
    names.
    """

    full_learning_rate: ClassVar[float] = 5e-7
    adapter_learning_rate: ClassVar[float] = 5e-6
    trls_rate: ClassVar[float] = 1e-6
    refused: ClassVar[Mapping[str, Refusal]] = REFUSED

    loss_type: str = option("kto", "The loss.", choices=["kto", "apo_zero_unpaired", "bco"])
    desirable_weight: float = option(1.0, "Weight of good answers (lambda_D).")
    undesirable_weight: float = option(1.0, "Weight of bad answers (lambda_U).")

    # --- fields of TRL's that preftune refuses unless they have no effect (see refused.py) ---
    router_aux_loss_coef: float | None = option(None, "Only 0 or unset: no auxiliary router loss is added.")

    @property
    def loss(self) -> str:
        """The name of the loss."""
        return self.loss_type

    def objective(self) -> UnpairedObjective:
        """The objective that is minimised."""
        return UnpairedObjective(self.loss_type)

    def _validate(self) -> None:
        positive("beta", self.beta, "0.1 is a safe start; a higher beta keeps the policy closer to the reference")
        for name in ("desirable_weight", "undesirable_weight"):
            positive(name, getattr(self, name), "1 is usual")
        super()._validate()
        if self.group_by_prompt:
            raise ConfigError("group_by_prompt=True is not honoured: every answer is a separate row. Leave it out.")


_NO_WEIGHTS = "it belongs to weights that match the prompts of good and bad answers; give rows a column weight instead"


@dataclass
class BCOConfig(KTOConfig):
    """Configuration of `BCOTrainer`, under TRL's names."""

    refused: ClassVar[Mapping[str, Refusal]] = {
        **REFUSED,
        **{name: Refusal((usual,), _NO_WEIGHTS) for name, usual in
           (("prompt_sample_size", 1024), ("min_density_ratio", 0.5), ("max_density_ratio", 10.0))},
    }  # fmt: skip

    loss_type: str = option("bco", "Only bco.", choices=["bco"])

    # --- fields of TRL's that preftune refuses unless they have no effect ---
    prompt_sample_size: int = option(1024, "Only the default is accepted.")
    min_density_ratio: float = option(0.5, "Only the default is accepted.")
    max_density_ratio: float = option(10.0, "Only the default is accepted.")
