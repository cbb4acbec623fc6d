"""From tokenised groups to batches: the collator of the trainers."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.logps.layout import pack
from preftune.types import PackedBatch, TokenizedGroup

BATCH = "batch"
"""The one entry of a trainer's inputs."""


def collate(groups: Sequence[TokenizedGroup]) -> dict[str, PackedBatch]:
    """Plan and pack a micro-batch. Integer work, done in the data loader's workers where there are any."""
    return {BATCH: pack(groups)}
