"""Scores of all pairs of an optimiser step, over its micro-batches and ranks, before its loss is computed, for losses
that sort the pairs or use their moments. They cost one more forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from preftune.logps import pack
from preftune.logps.batch import PackedBatch
from preftune.losses import Pairs
from preftune.reference import inference
from preftune.training.protocol import DPOTrainerView
from preftune.training.step.memory import score_in_parts
from preftune.types import Sides, TokenizedGroup


class StepPairs(NamedTuple):
    """The scored pairs of a step."""

    pairs: Pairs
    """Pairs of all ranks in rank order, float64, on the CPU, without gradients; their margins are 0."""
    own: slice
    """This rank's pairs among them."""


def pairs_of_step(trainer: DPOTrainerView, model: nn.Module, batches: Sequence[PackedBatch]) -> StepPairs:
    """Score all pairs of the step under policy and reference. Every rank must call it at the same time."""

    def score(part: Sequence[TokenizedGroup]) -> Sequence[Tensor]:
        batch = pack(part).to(trainer.args.device)
        args = trainer.args
        alphas = args.ld_alpha, None if args.ld_policy_only else args.ld_alpha
        known = trainer.reference(model, batch)  # before the policy: it may exchange weights
        with trainer.autocast(), inference(model):
            scored = trainer.engine(model, batch)
        policy, reference = (
            scores.sides(batch, ld_alpha=alpha) for scores, alpha in zip((scored, known), alphas, strict=True)
        )
        return list(torch.stack([*policy, *reference], 1).cpu().split([len(group.pairs) for group in part]))

    groups = [group for batch in batches for group in batch.groups]
    own = [
        pair for parts in score_in_parts(trainer, groups, score, work="reference") for part in parts for pair in part
    ]
    everyones, start = own, 0
    if trainer.args.world_size > 1:
        ranks: list[list[Tensor]] = gather_object([own])
        everyones = [pair for of_rank in ranks for pair in of_rank]
        start = sum(map(len, ranks[: trainer.args.process_index]))
    columns = (torch.stack(everyones).double() if everyones else torch.zeros(0, 8, dtype=torch.float64)).unbind(1)
    pairs = Pairs(Sides(*columns[:4]), Sides(*columns[4:]), torch.zeros_like(columns[0]))
    return StepPairs(pairs, slice(start, start + len(own)))


def with_sorted_margins(
    trainer: DPOTrainerView, model: nn.Module, batches: Sequence[PackedBatch]
) -> Sequence[PackedBatch]:
    """The batches with the margins of a loss that sorts the step's pairs. Every rank must call it at the same time."""
    pairs, own = pairs_of_step(trainer, model, batches)
    margin_N, rejected_margin_N = trainer.objective.step_margins(pairs)
    both = zip(margin_N[own].tolist(), rejected_margin_N[own].tolist(), strict=True)
    return with_changed_pairs(batches, [{"margin": one, "rejected_margin": other} for one, other in both])


def with_changed_pairs(batches: Sequence[PackedBatch], changes: Iterable[Mapping[str, Any]]) -> Sequence[PackedBatch]:
    """The batches with changed fields of their pairs.

    Args:
        changes: new values by field name, one mapping for each pair in the order of the batches.
    """
    wanted = iter(changes)
    made = []
    for batch in batches:
        groups = [
            replace(group, pairs=tuple(pair._replace(**next(wanted)) for pair in group.pairs)) for group in batch.groups
        ]
        made.append(pack(groups).to(batch.input_ids.device) if groups else batch)
    return made
