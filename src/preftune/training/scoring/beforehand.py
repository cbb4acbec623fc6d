"""Reference scores of a whole dataset before a training (`preftune score`), by the trainer of that training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from preftune.errors import ConfigError
from preftune.log import take_notes
from preftune.training.record.run_record import parts


class Scored(NamedTuple):
    """What `preftune score` did."""

    rows: int
    computed: int
    """Completions that were scored now; the others were in the cache."""
    reference: str
    """Which model is the reference."""
    file: Path
    """The file of scores in the cache."""
    draws: bool
    """Whether the training scores answers that it draws in each step too."""


def scoring_config(args: Any, folder: str) -> Any:
    """The configuration of a training, for its reference scores alone.

    Args:
        folder: for what the trainer writes; it is not needed afterwards.
    Raises: ConfigError where scores made beforehand have no use.
    """
    if not args.objective().needs_reference:
        raise ConfigError(f"loss_type={args.loss_type} needs no reference, so there is nothing to score beforehand.")
    if args.sync_ref_model:
        raise ConfigError("sync_ref_model=True moves the reference, so its scores cannot be kept. Leave it out.")
    if not args.reference_cache:
        raise ConfigError("reference_cache=False keeps no scores. Leave it out, so that the training finds them.")
    return replace(
        args,
        output_dir=folder,
        precompute_ref_log_probs=True,
        resume_from_checkpoint=None,
        guard="off",
        eval_judge=None,
        early_stopping_patience=None,
        load_best_model_at_end=False,
        report_to="none",
        push_to_hub=False,
        plan_only=False,
    )


def score_beforehand(trainer: Any) -> Scored:
    """Checks the first step and scores all rows, as `trainer.train()` would before its first step.

    Args:
        trainer: with a `scoring_config`; it is not trained.
    Raises: PreftuneError if the scores could not be kept.
    """
    reference = trainer.reference
    trainer.before_first_step(resumed=False)
    take_notes()
    store = reference.store
    store.check_kept()
    rows = sum(len(part) for part in [*parts(trainer.train_dataset), *parts(trainer.eval_dataset)])
    computed = _of_all(trainer, reference.beforehand)
    return Scored(rows, computed, reference.source.description, store.path, draws_answers(trainer.args))


def draws_answers(args: Any) -> bool:
    """Whether a training scores answers that it draws in each step: the baseline of KTO's loss."""
    return bool(args.loss_type == "kto")


def _of_all(trainer: Any, count: int) -> int:
    """The sum over all ranks."""
    if trainer.args.world_size == 1:
        return count
    counted = torch.tensor(count, device=trainer.args.device)
    return int(trainer.accelerator.reduce(counted, "sum"))
