"""The margins of losses that sort the pairs of a whole optimiser step, over all its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from preftune.logps import pack
from preftune.logps.batch import PackedBatch
from preftune.losses.pairwise import aot_margins
from preftune.reference import inference
from preftune.training.protocol import DPOTrainerView
from preftune.training.step.memory import score_in_parts
from preftune.types import TokenizedGroup


def with_sorted_margins(
    trainer: DPOTrainerView, model: nn.Module, batches: Sequence[PackedBatch]
) -> Sequence[PackedBatch]:
    """The batches with AOT's margins. Costs one more forward pass. Every rank must call it at the same time."""

    def score(part: Sequence[TokenizedGroup]) -> Sequence[Tensor]:
        batch = pack(part).to(trainer.args.device)
        known = trainer.reference(model, batch).sides(batch)
        with trainer.autocast(), inference(model):
            policy = trainer.engine(model, batch).sides(batch)
        both = torch.stack([policy.chosen_N - policy.rejected_N, known.chosen_N - known.rejected_N], 1).cpu()
        return list(both.split([len(group.pairs) for group in part]))

    groups = [group for batch in batches for group in batch.groups]
    own = [
        pair for parts in score_in_parts(trainer, groups, score, work="reference") for part in parts for pair in part
    ]
    everyones, start = own, 0
    if trainer.args.world_size > 1:
        ranks: list[list[Tensor]] = gather_object([own])
        everyones = [pair for of_rank in ranks for pair in of_rank]
        start = sum(map(len, ranks[: trainer.args.process_index]))
    if not everyones:
        return batches
    policy_N, reference_N = torch.stack(everyones).double().unbind(1)
    margins = iter(aot_margins(policy_N, reference_N, beta=trainer.objective.beta).tolist()[start : start + len(own)])
    made = []
    for batch in batches:
        changed = [
            replace(group, pairs=tuple(pair._replace(margin=next(margins)) for pair in group.pairs))
            for group in batch.groups
        ]
        made.append(pack(changed).to(trainer.args.device) if changed else batch)
    return made
