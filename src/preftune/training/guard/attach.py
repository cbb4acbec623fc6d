"""Where the trainer and its guard meet: a guard if one is asked for, and the data its prompts come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from preftune.training.guard.samples import opened
from preftune.training.protocol import DPOTrainerView

if TYPE_CHECKING:
    from preftune.training.config.referenced import ReferenceFields
    from preftune.training.guard.callback import Guard


def opened_for_guard(train: Any, held_out: Any, args: ReferenceFields) -> tuple[Any, Any]:
    """The datasets, the one that the guard takes its prompts from opened: held-out rows, or else training rows."""
    if args.guard == "off":
        return train, held_out
    return (train, opened(held_out)) if held_out is not None else (opened(train), None)


def attach_guard(trainer: DPOTrainerView, train: Any, held_out: Any) -> Guard | None:
    """The guard of a trainer that is all but ready, as one of its callbacks; None where none is asked for.

    Raises:
        ConfigError: `guard_prompts` names a file that is not there or holds no prompt.
    """
    if trainer.args.guard == "off":
        return None
    from preftune.training.guard.callback import Guard
    from preftune.training.guard.samples import prompts_from_file

    if isinstance(trainer.args.guard_prompts, str):
        prompts_from_file(trainer.args.guard_prompts)  # errors in it are reported before the first step
    guard = Guard(trainer, train if held_out is None else held_out, held_out=held_out is not None)
    trainer.add_callback(guard)
    return guard
