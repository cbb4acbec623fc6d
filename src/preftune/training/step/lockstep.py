"""Ranks that hold parts of one model compute together: all of them gather a layer's weights at once, so every rank runs
the same number of forward and backward passes. A rank with fewer batches than another repeats a small batch, whose
result is not counted.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from preftune.training.protocol import TrainerView
from preftune.types import TokenizedGroup


def together(trainer: TrainerView) -> bool:
    """Whether the ranks must run the same number of passes."""
    return trainer.args.sharding is not None


def most(trainer: TrainerView, count: int) -> int:
    """The largest count of all ranks; without sharding, this rank's own."""
    if not together(trainer):
        return count
    said = torch.tensor([count], device=trainer.args.device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return int(said)


def anywhere(trainer: TrainerView, flag: bool) -> bool:
    """Whether a flag is set on any rank; without sharding, this rank's own."""
    return bool(most(trainer, int(flag)))


def stand_in(trainer: TrainerView) -> TokenizedGroup:
    """A small group that a rank without a batch computes: the shortest row of the training data."""
    data: Any = trainer.train_dataset
    group: TokenizedGroup = data[int(data.lengths.argmin())]
    return group
