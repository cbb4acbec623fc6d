"""The objective of a configuration on what policy and reference say of a batch's pairs."""

from __future__ import annotations

from preftune.logps.batch import GroupLogps, PackedBatch
from preftune.losses import LossOutput, Objective
from preftune.losses.pairwise import aot_margins
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
    delta: float = 0.0,
    prepared: bool = False,
) -> tuple[LossOutput, Sides]:
    """Loss and rewards of the pairs, and the policy's two sides.

    Args:
        scored: by the policy.
        known: by the reference; None where no loss needs one.
        tokens_per_pair: tokens of the chosen completions of the whole optimiser step over its pairs.
        delta: the mean of the rewards of earlier steps, nats.
        prepared: the margins of a loss that sorts are those of the whole step; otherwise they are made of this batch.
    """
    policy = scored.sides(batch, ld_alpha=args.ld_alpha)
    reference = None if known is None else known.sides(batch, ld_alpha=None if args.ld_policy_only else args.ld_alpha)
    margin_N = batch.margin_N
    if objective.sorts and not prepared and reference is not None:
        margin_N = aot_margins(
            policy.chosen_N - policy.rejected_N, reference.chosen_N - reference.rejected_N, beta=objective.beta
        )
    output = objective(
        policy,
        reference,
        weight_N=batch.weight_N,
        margin_N=margin_N,
        whole_N=scored.sum_K[batch.chosen_N],
        delta=delta,
        tokens_per_pair=policy.chosen_length_N if args.sft_mean == "completions" else tokens_per_pair,
    )
    return output, policy
