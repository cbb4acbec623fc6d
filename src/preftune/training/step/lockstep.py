"""Ranks that hold parts of one model compute together: a layer's weights are gathered by all of them at once, so every
rank runs equally many forward and backward passes. A rank with fewer batches than another repeats a small one, which
counts nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from preftune.training.protocol import TrainerView
from preftune.types import TokenizedGroup


def together(trainer: TrainerView) -> bool:
    """Whether the ranks must run equally many passes."""
    return trainer.args.sharding is not None


def most(trainer: TrainerView, count: int) -> int:
    """The largest count of all ranks; this rank's own where each rank computes for itself."""
    if not together(trainer):
        return count
    said = torch.tensor([count], device=trainer.args.device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return int(said)


def anywhere(trainer: TrainerView, flag: bool) -> bool:
    """Whether a flag is set on any rank; this rank's own where each rank computes for itself."""
    return bool(most(trainer, int(flag)))


def stand_in(trainer: TrainerView) -> TokenizedGroup:
    """A small group that a rank without a batch computes: the shortest row of the training data."""
    data: Any = trainer.train_dataset
    group: TokenizedGroup = data[int(data.lengths.argmin())]
    return group
