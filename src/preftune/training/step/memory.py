"""Out of memory: less is computed at a time from then on, and the run stops only when a single pair does not fit."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from preftune.amounts import counted
from preftune.errors import OutOfMemoryError
from preftune.log import warn
from preftune.logps import pack
from preftune.logps.batch import PackedBatch
from preftune.logps.score_groups import is_out_of_memory
from preftune.training.protocol import GroupTrainerView, TokenLimitView, TrainerView
from preftune.training.step.lockstep import most, stand_in, together
from preftune.training.step.memory_advice import out_of_memory_error
from preftune.training.step.micro_batches import Cost, parts_of, plan_micro_batches, split_group
from preftune.types import TokenizedGroup

Work = Literal["training", "evaluation", "reference", "scoring"]
Result = TypeVar("Result")

_SMALLER = {
    "evaluation": "a smaller per_device_eval_batch_size",
    "reference": "a smaller precompute_ref_batch_size",
    "scoring": "a smaller max_tokens_per_batch",
}


class TokenLimit:
    """The most tokens computed at a time. It falls when memory runs out, and never rises again in a run."""

    def __init__(self, tokens: int | None) -> None:
        """
        Args:
            tokens: the first limit; None computes batches as the loader made them.
        """
        self.tokens = tokens
        self.fell_to: int | None = None
        """The limit since memory ran out; None if it never did."""

    def lower(self, tokens: int) -> None:
        self.tokens = self.fell_to = tokens if self.tokens is None else min(self.tokens, tokens)

    def follow(self, tokens: int | None) -> None:
        """Adopt the smallest limit of all ranks, so that no rank waits again for the attempts of another."""
        if tokens is None or tokens == self.tokens:
            return
        self.lower(tokens)
        warn(f"another process ran out of memory: from now on at most {tokens:,} tokens are computed at a time.")

    def resume(self, tokens: int | None) -> None:
        """Continue with the limit of a checkpoint's run; None if its memory never ran out."""
        if tokens is not None and (self.tokens is None or tokens < self.tokens):
            self.lower(tokens)
            warn(f"memory ran out before the checkpoint: the run continues with at most {tokens:,} tokens at a time.")

    def halve(
        self, trainer: TrainerView, groups: Sequence[TokenizedGroup], cost: Cost, error: Exception, work: Work
    ) -> None:
        """Set the limit to half the tokens that did not fit, and warn.

        Args:
            groups: what did not fit.
            cost: tokens of a group, as the engine counts them.
            error: the error of the device.
            work: what was computed, for the warning.
        Raises:
            OutOfMemoryError: it was a single pair or row, or the model is sharded; the message names the fixes.
        """
        tokens, parts = sum(cost(group) for group in groups), _parts(groups)
        if parts <= 1:
            raise out_of_memory_error(trainer, groups[0], training=work == "training") from error
        if together(trainer):  # the other ranks are in the middle of a pass
            raise OutOfMemoryError(
                f"out of memory on {counted(parts, _called(groups))} of {tokens:,} tokens ({work}). Ranks that share a "
                f"model cannot repeat them in smaller parts: set max_tokens_per_batch={tokens // 2}, and continue from "
                "the last checkpoint (--resume)."
            ) from error
        self.lower(tokens // 2)
        what, unchanged, fix = "scored", "the numbers stay the same", _SMALLER.get(work)
        if work == "training":
            what, unchanged, fix = "computed", "the update stays the same", f"max_tokens_per_batch={self.tokens}"
        warn(
            f"out of memory on {counted(parts, _called(groups))} of {tokens:,} tokens ({work}). From now on at most "
            f"{self.tokens:,} tokens are {what} at a time; {unchanged}. Set {fix} to start the next run with this."
        )


@contextmanager
def explained(trainer: TrainerView, group: TokenizedGroup | None = None) -> Iterator[None]:
    """Replace the device's error by an `OutOfMemoryError` that names the fixes when memory runs out.

    Args:
        group: the group that was computed; None outside of a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_error(trainer, group, training=True) from error


def score_in_parts(
    trainer: TrainerView,
    groups: Sequence[TokenizedGroup],
    score: Callable[[Sequence[TokenizedGroup]], Sequence[Result]],
    *,
    work: Work,
) -> list[list[Result]]:
    """Score groups within the trainer's `scoring_limit`, which falls when memory runs out. Nothing is kept for a
    backward pass, so finished scores stay valid.

    Args:
        score: scores some groups together, and returns one result per group.
        work: what is computed, for the warning.
    Returns: for each group the results of its parts, more than one if it was split.
    Raises:
        OutOfMemoryError: a single pair did not fit, or the model is sharded.
    """
    limit, cost = trainer.scoring_limit, trainer.cost
    parts = [(at, part) for at, group in enumerate(groups) for part in split_group(group, limit.tokens, cost)]
    batches = [list(range(len(parts)))] if parts else []
    if limit.tokens is not None:
        batches = plan_micro_batches([cost(part) for _, part in parts], limit.tokens)
    spare = most(trainer, len(batches)) - len(batches)
    of_parts: list[list[Result]] = [[] for _ in parts]
    for batch in batches:
        joined = [parts[index][1] for index in batch]
        answers = None
        if _fits(joined, limit, cost):
            try:
                answers = [[answer] for answer in score(joined)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                limit.halve(trainer, joined, cost, error, work)
        if answers is None:
            clear_device_cache(garbage_collection=True)
            answers = score_in_parts(trainer, joined, score, work=work)
        for index, answer in zip(batch, answers, strict=True):
            of_parts[index] = answer
    for _ in range(spare):
        score([stand_in(trainer)])
    results: list[list[Result]] = [[] for _ in groups]
    for (at, _), answer in zip(parts, of_parts, strict=True):
        results[at].extend(answer)
    return results


def _fits(groups: Sequence[TokenizedGroup], limit: TokenLimitView, cost: Cost) -> bool:
    """Whether the groups are within the limit, which may have fallen since they were planned, or cannot be split."""
    within = limit.tokens is None or sum(cost(group) for group in groups) <= limit.tokens
    return within or _parts(groups) <= 1


def _parts(groups: Sequence[TokenizedGroup]) -> int:
    """The largest number of parts into which the groups can be split."""
    return sum(map(parts_of, groups))


def _called(groups: Sequence[TokenizedGroup]) -> str:
    return "pair" if any(group.pairs for group in groups) else "row"


def item_rows(trainer: GroupTrainerView, model: nn.Module, batch: PackedBatch) -> Tensor:
    """Each item's loss and the trainer's columns, shape (items, 1 + columns), float32, in the batch's order.

    The batch is split where memory requires it. The caller disables gradients and dropout.
    """

    def score(groups: Sequence[TokenizedGroup]) -> Sequence[Tensor]:
        whole = len(groups) == len(batch.groups) and all(map(operator.is_, groups, batch.groups))
        part = batch if whole else pack(groups).to(trainer.args.device)
        losses, columns = trainer.batch_loss(model, part)
        rows = torch.cat([losses.detach().float()[:, None], columns], 1)
        return list(rows.split([trainer.items(group) for group in groups]))

    parts = score_in_parts(trainer, batch.groups, score, work="evaluation")
    return torch.cat([rows for of_group in parts for rows in of_group])
