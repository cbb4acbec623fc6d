"""From tokenised groups to batches: the collator of the trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from preftune.errors import ConfigError
from preftune.logps.layout import pack
from preftune.types import PackedBatch, TokenizedGroup

if TYPE_CHECKING:
    from preftune.training.config import DPOConfig

BATCH = "batch"
"""The one entry of a trainer's inputs."""


def collate(groups: Sequence[TokenizedGroup]) -> dict[str, PackedBatch]:
    """Plan and pack a micro-batch. Integer work, done in the data loader's workers where there are any."""
    return {BATCH: pack(groups)}


def probes(lengths: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """The rows that the check of the first step compares, packed beside each other: the longest, the shortest, and one
    between them. What an engine gets wrong shows beyond a limit, at an edge, or with neighbours.

    Args:
        lengths: (groups,) tokens of each group.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    return sorted({int(order[at]) for at in (-1, 0, len(order) // 2)})


def shortest(lengths: NDArray[np.int64], rows: int, *, of: int = 64) -> list[int]:
    """The shortest of some rows from all over the data, for questions that any row answers.

    Args:
        lengths: (groups,) tokens of each group.
        of: how many are looked at.
    """
    looked_at = np.unique(np.linspace(0, len(lengths) - 1, of).astype(np.int64))
    return sorted(looked_at[np.argsort(lengths[looked_at], kind="stable")[:rows]].tolist())


def check_one_batch(args: DPOConfig, rows: int) -> None:
    """There must be something to train on when the last, smaller batch is dropped.

    Args:
        rows: of the training data.
    Raises:
        ConfigError: with the numbers.
    """
    whole = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < whole:
        devices = f" on {args.world_size} devices" if args.world_size > 1 else ""
        raise ConfigError(
            f"dataloader_drop_last=True drops all there is: {rows} rows are less than one batch "
            f"(per_device_train_batch_size={args.per_device_train_batch_size}{devices}). Leave dataloader_drop_last "
            "out, or lower per_device_train_batch_size."
        )
