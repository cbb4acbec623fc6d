"""From tokenised groups to batches: the collator of the trainers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.logps.batch import PackedBatch, pack
from preftune.logps.layout import GroupLayout
from preftune.types import TokenizedGroup

if TYPE_CHECKING:
    from preftune.training.config.base import PackedConfig

BATCH = "batch"
"""The only key of a trainer's inputs."""


def collate(groups: Sequence[TokenizedGroup]) -> dict[str, PackedBatch]:
    """Pack a micro-batch. It is integer work, which the data loader's workers do if there are any."""
    return {BATCH: pack(groups) if groups else no_groups()}


def no_groups() -> PackedBatch:
    """The micro-batch of a rank for which the last batch of an epoch has no rows left."""
    none = torch.zeros(0, dtype=torch.int64)
    layout = GroupLayout((), torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), none, 0, 0)
    return PackedBatch(
        input_ids=none[None],
        position_ids=none[None],
        layout=layout,
        predict_T=none,
        target_T=none,
        owner_T=none,
        chosen_N=none,
        rejected_N=none,
        weight_N=torch.zeros(0),
        margin_N=torch.zeros(0),
        rejected_margin_N=torch.zeros(0),
        good_K=torch.zeros(0, dtype=torch.bool),
        label_weight_K=torch.zeros(0),
        score_K=torch.zeros(0),
        groups=(),
    )


class WithoutRepeats(BatchSamplerShard):  # type: ignore[misc]
    """This rank's batches in accelerate's order; the last ones may be smaller or empty. accelerate would fill them with
    rows that were trained on already, so that the update would depend on the number of ranks.
    """

    def __len__(self) -> int:
        share = 1 if self.split_batches else self.num_processes
        return (len(self.batch_sampler) + share - 1) // share

    def __iter__(self) -> Iterator[list[int]]:
        if self.split_batches:
            size = self.batch_sampler.batch_size // self.num_processes
            for batch in self.batch_sampler:
                yield batch[size * self.process_index : size * (self.process_index + 1)]
            return
        batches = iter(self.batch_sampler)
        while everyones := list(islice(batches, self.num_processes)):
            yield everyones[self.process_index] if self.process_index < len(everyones) else []


def without_repeats(loader: Any) -> Any:
    """The training loader that `accelerate` prepared, changed so that no row occurs twice in an epoch."""
    shard = loader.batch_sampler
    if type(shard) is BatchSamplerShard and not shard.drop_last:
        shard.__class__ = WithoutRepeats  # accelerate makes the object, and has no option for this
    return loader


def with_a_seed_of_its_own(loader: Any, seed: int) -> Any:
    """The loader, which then draws the seed of its workers from its own generator. Persistent workers would draw it
    from the global one once in a process, so that a resumed run would have other dropout.
    """
    loader.generator = torch.Generator().manual_seed(seed)
    if hasattr(loader, "base_dataloader"):  # accelerate's loaders iterate over another one
        loader.base_dataloader.generator = loader.generator
    return loader


def probes(lengths: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """The rows that the check of the first step compares, packed together: the longest, the shortest, and the median.
    An error of an engine shows beyond a limit, at an edge, or with neighbours in the pack.

    Args:
        lengths: tokens of each group, shape (groups,).
    Returns: 1 to 3 row numbers, in rising order.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    return sorted({int(order[at]) for at in (-1, 0, len(order) // 2)})


def chosen_tokens(groups: Iterable[TokenizedGroup]) -> int:
    """Scored tokens of the chosen completions of all pairs."""
    return sum(group.scored_lengths[pair.chosen] for group in groups for pair in group.pairs)


def gold_tokens(groups: Iterable[TokenizedGroup]) -> int:
    """Scored tokens of the gold answers."""
    return sum(group.scored_lengths[group.gold] for group in groups if group.gold is not None)


def shortest(lengths: NDArray[np.int64], rows: int, *, of: int = 64) -> list[int]:
    """The shortest of some evenly spaced rows, for a check that any row can serve.

    Args:
        lengths: tokens of each group, shape (groups,).
        rows: most rows to return.
        of: most rows to choose from.
    Returns: row numbers, in rising order.
    """
    looked_at = np.unique(np.linspace(0, len(lengths) - 1, of).astype(np.int64))
    return sorted(looked_at[np.argsort(lengths[looked_at], kind="stable")[:rows]].tolist())


def check_one_batch(args: PackedConfig, rows: int) -> None:
    """Check that at least one batch remains when the last, smaller one is dropped.

    Args:
        rows: number of training rows.
    Raises:
        ConfigError: `dataloader_drop_last` drops all rows.
    """
    whole = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < whole:
        devices = f" on {args.world_size} devices" if args.world_size > 1 else ""
        raise ConfigError(
            f"dataloader_drop_last=True drops all rows: {counted(rows, 'row')} fill less than one batch "
            f"(per_device_train_batch_size={args.per_device_train_batch_size}{devices}). Leave dataloader_drop_last "
            "out, or lower per_device_train_batch_size."
        )
