"""Running moments of the log-ratio differences of an optimiser step's pairs, for losses that use them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xxhash
from accelerate.utils import gather_object
from torch import nn

from preftune.logps.batch import PackedBatch
from preftune.losses import RunningMoments
from preftune.losses.moments import dynamic_beta, kept_pairs
from preftune.training.protocol import DPOTrainerView
from preftune.training.step.step_pairs import pairs_of_step, with_changed_pairs
from preftune.types import Preference, TokenizedGroup


def measured(
    trainer: DPOTrainerView, moments: RunningMoments, model: nn.Module, batches: Sequence[PackedBatch]
) -> tuple[Sequence[PackedBatch], dict[str, float]]:
    """Add the step to the moments. Every rank must call it at the same time.

    Returns: for beta-DPO, the batches with weight 0 for the pairs that it leaves out and larger weights for the others,
        so that the loss is the mean over these; and the metrics `beta_dpo/beta` (the step's beta) and
        `beta_dpo/left_out` (the share that is left out). For other losses, the batches unchanged and an empty dict.
    """
    pairs, own = pairs_of_step(trainer, model, batches)
    assert trainer.objective.gap is not None
    gap_N = trainer.objective.gap(pairs)
    moments.add(gap_N)
    if not any(loss.name == "beta_dpo" for loss, _ in trainer.objective.terms) or not len(gap_N):
        return batches, {}
    options, share = trainer.objective.options, trainer.objective.options["beta_dpo_filter"]
    kept_N = torch.ones_like(gap_N, dtype=torch.bool)
    if share:
        every = _draws(trainer, batches)
        kept_N = kept_pairs(gap_N, torch.tensor(every, dtype=torch.float64), moments, share=share)
    beta = dynamic_beta(
        gap_N[kept_N], beta=trainer.objective.beta, beta_dpo_alpha=options["beta_dpo_alpha"], mean=moments.mean
    )
    count = int(kept_N.sum())
    factor, figures = len(gap_N) / count, {"beta_dpo/beta": beta, "beta_dpo/left_out": 1 - count / len(gap_N)}
    weights = [pair.weight for batch in batches for group in batch.groups for pair in group.pairs]
    kept = zip(weights, kept_N[own].tolist(), strict=True)
    return with_changed_pairs(batches, [{"weight": weight * factor * keep} for weight, keep in kept]), figures


def _draws(trainer: DPOTrainerView, batches: Sequence[PackedBatch]) -> list[float]:
    """A number in (0, 1) for each pair of all ranks. It depends only on the pair's tokens, the seed and the step, so
    that batches, ranks and resuming do not change it.
    """
    seed = f"{trainer.args.seed} {trainer.state.global_step}".encode()
    own = [_uniform(seed, group, pair) for batch in batches for group in batch.groups for pair in group.pairs]
    if trainer.args.world_size == 1:
        return own
    ranks: list[list[float]] = gather_object([own])
    return [draw for of_rank in ranks for draw in of_rank]


def _uniform(seed: bytes, group: TokenizedGroup, pair: Preference) -> float:
    parts = (group.prompt_ids, group.completions[pair.chosen], group.completions[pair.rejected])
    text = b"|".join([seed, *(torch.tensor(part).numpy().tobytes() for part in parts)])
    return ((xxhash.xxh3_64_intdigest(text) >> 12) + 0.5) / 2**52
