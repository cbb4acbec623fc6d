"""`CPOTrainer`, `ORPOTrainer` and `TPOTrainer`: TRL's names for the losses of pairs without a reference."""

from __future__ import annotations

from typing import Any

from preftune.training.config.reference_free import CPOConfig, ORPOConfig, TPOConfig
from preftune.training.trainers.dpo import DPOTrainer


class _ReferenceFreeTrainer(DPOTrainer):
    def __init__(self, model: Any = None, args: Any = None, **options: Any) -> None:
        super().__init__(model, None, args, **options)


class CPOTrainer(_ReferenceFreeTrainer):
    """`DPOTrainer` with CPO or SimPO, and no reference.

    Args: those of `DPOTrainer` but `ref_model`.
    """

    args: CPOConfig
    method = "cpo"
    config_class = CPOConfig


class ORPOTrainer(_ReferenceFreeTrainer):
    """`DPOTrainer` with ORPO, and no reference.

    Args: those of `DPOTrainer` but `ref_model`.
    """

    args: ORPOConfig
    method = "orpo"
    config_class = ORPOConfig


class TPOTrainer(_ReferenceFreeTrainer):
    """`DPOTrainer` with TPO, and no reference: rows have a third, gold answer in the column `reference`.

    Args: those of `DPOTrainer` but `ref_model`.
    """

    args: TPOConfig
    method = "tpo"
    config_class = TPOConfig
