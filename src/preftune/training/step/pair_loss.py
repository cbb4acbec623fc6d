"""The objective of a configuration, applied to the policy's and the reference's scores of a batch's pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from preftune.errors import ConfigError
from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.losses import Lists, LossOutput, Objective, Pairs
from preftune.losses.pairwise import wpo_weights
from preftune.training.config.losses import LossFields
from preftune.types import Sides


def pair_loss(
    args: LossFields,
    objective: Objective,
    batch: PackedBatch,
    *,
    scored: GroupLogps,
    known: GroupLogps | None,
    tokens_per_pair: float,
    step: Mapping[str, Any] | None = None,
    prepared: bool = False,
) -> tuple[LossOutput, Sides]:
    """Loss and rewards of the pairs, and the policy's two sides.

    Args:
        scored: the policy's scores.
        known: the reference's scores; None where no loss needs a reference.
        tokens_per_pair: tokens of the chosen completions of the whole optimiser step, divided by its pairs.
        step: other values of the whole step that losses use: `delta`, the mean reward of earlier steps, in nats;
            `step_beta`; `gap_mean` and `gap_std`. None for pairs outside of a step.
        prepared: whether the batch has the margins of a loss that sorts, made of the whole step; otherwise they are
            made of this batch.
    """
    policy = scored.sides(batch, ld_alpha=args.ld_alpha)
    reference = None if known is None else known.sides(batch, ld_alpha=None if args.ld_policy_only else args.ld_alpha)
    weights: dict[str, Tensor] = {}
    margin_N, rejected_margin_N = batch.margin_N, batch.rejected_margin_N
    if objective.sorts and not prepared:
        margin_N, rejected_margin_N = objective.step_margins(Pairs(policy, reference, margin_N))
    if args.use_weighting:
        confidence_K = scored.confidence_K
        weights["policy_weight_N"] = wpo_weights(confidence_K[batch.chosen_N], confidence_K[batch.rejected_N])
    output = objective(
        policy,
        reference,
        weight_N=batch.weight_N,
        **weights,
        margin_N=margin_N,
        rejected_margin_N=rejected_margin_N,
        whole_N=scored.sum_K[batch.chosen_N],
        gold_N=scored.sum_K[gold_of(batch)] if objective.needs_gold else None,
        lists=lists_of(batch, scored, known) if objective.takes_lists and known is not None else None,
        **({"delta": 0.0} if step is None else step),
        tokens_per_pair=policy.chosen_length_N if args.sft_mean == "completions" else tokens_per_pair,
    )
    return output, policy


def lists_of(batch: PackedBatch, scored: GroupLogps, known: GroupLogps) -> Lists:
    """The lists of a batch, one per pair: all completions of a group with scores and one pair, else the pair's two."""
    members: list[list[int]] = []
    scores: list[list[float]] = []
    first = 0
    for group in batch.groups:
        if group.scores and len(group.pairs) == 1:
            members.append(list(range(first, first + len(group.completions))))
            scores.append(list(group.scores))
        else:
            members += [[first + pair.chosen, first + pair.rejected] for pair in group.pairs]
            scores += [[0.0, -1.0]] * len(group.pairs)
        first += len(group.completions)
    ratio_K = scored.sum_K - known.sum_K
    padded = pad_sequence([torch.tensor(one) for one in members], batch_first=True, padding_value=-1)
    score_NK = pad_sequence([torch.tensor(one, dtype=torch.float64) for one in scores], batch_first=True)
    there_NK = (padded >= 0).to(ratio_K.device)
    ratio_NK = ratio_K[padded.clamp(min=0).to(ratio_K.device)].masked_fill(~there_NK, 0.0)
    return Lists(ratio_NK, score_NK.to(ratio_K.device, ratio_K.dtype), there_NK)


def gold_of(batch: PackedBatch) -> Tensor:
    """Index of each group's gold answer among the batch's completions, shape (N,), int64.

    Raises: ConfigError for a group without a gold answer.
    """
    found, first = [], 0
    for group in batch.groups:
        if group.gold is None:
            raise ConfigError(
                f"row {group.id} has no gold answer, the third completion that TPO imitates. Give rows with a column "
                "'reference', or set tpo_alpha=0."
            )
        found.append(first + group.gold)
        first += len(group.completions)
    return torch.tensor(found, device=batch.input_ids.device)
