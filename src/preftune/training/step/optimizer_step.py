"""One optimiser step as a unit: it is split into micro-batches that fit, and repeated when memory runs out.

transformers passes a step one micro-batch at a time. All of them are computed when the last one arrives, so that every
gradient belongs to this step and can be discarded. A rank sends nothing to another before its own gradients are
complete, so the ranks may differ in their number of micro-batches and of attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from preftune.errors import NonFiniteError, OutOfMemoryError
from preftune.logps import pack
from preftune.logps.batch import PackedBatch
from preftune.logps.score_groups import is_out_of_memory
from preftune.training.protocol import TrainerView
from preftune.training.step.lockstep import most, stand_in, together
from preftune.training.step.micro_batches import Cost, plan_micro_batches, split_group
from preftune.training.step.ranks import BUCKET_MB, FAILED, add_gradients, agree

Compute = Callable[[PackedBatch], tuple[Tensor, Tensor]]
"""Runs forward and backward of a micro-batch. Returns its share of the step's loss, a detached scalar, and its metrics,
shape (pairs, metrics)."""


class Step(NamedTuple):
    """The loss and the metrics of one rank's pairs."""

    loss: Tensor
    """Scalar, detached."""
    metrics: Tensor
    """Shape (pairs, metrics), as `pair_metrics` returns them."""


def whole_step(
    trainer: TrainerView,
    model: nn.Module,
    batches: Sequence[PackedBatch],
    compute: Compute,
    *,
    fill: Compute | None = None,
    added: bool = False,
) -> Step:
    """Compute one optimiser step, so that the parameters have the gradients of all ranks' pairs.

    Args:
        trainer: its `step_limit` is the most tokens computed at a time, and falls when memory runs out.
        model: the policy, not wrapped.
        batches: the step's micro-batches as the data loader made them.
        compute: may change nothing but gradients and the random state, because a second attempt repeats it.
        fill: as `compute`, with a loss of 0 and without metrics; only sharded weights need it (see `lockstep`).
        added: whether the losses are shares of the whole step's loss, so that the gradients of the ranks are added;
            otherwise they are averaged.
    Returns: the loss and the metrics of this rank's pairs.
    Raises:
        OutOfMemoryError: a single pair does not fit, here or on another rank; with sharded weights, any batch.
    """
    if fill is not None and together(trainer):
        return _step_of_all_ranks(trainer, batches, compute, fill)
    ranks = trainer.accelerator.num_processes
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        step = _step_of_this_rank(trainer, model, batches, compute)
    except OutOfMemoryError:
        if ranks > 1:  # the others must not wait for gradients that are never sent
            agree(parameters, FAILED)
        raise
    if ranks > 1:
        tokens, with_gradient = agree(parameters, trainer.step_limit.tokens)
        trainer.step_limit.follow(tokens)
        megabytes = trainer.args.ddp_bucket_cap_mb or BUCKET_MB
        add_gradients(with_gradient, divided_by=1 if added else ranks, bucket_mb=megabytes)
    return step


def _step_of_this_rank(
    trainer: TrainerView, model: nn.Module, batches: Sequence[PackedBatch], compute: Compute
) -> Step:
    limit, device = trainer.step_limit, trainer.args.device
    random = RandomState.of(device)
    while True:
        done: list[tuple[Tensor, Tensor]] = []
        failed = False
        for part in micro_batches(batches, _budget(trainer, batches), trainer.cost):
            try:
                done.append(compute(part))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                limit.halve(trainer, part.groups, trainer.cost, error, "training")
                failed = True
                break
        if not failed:
            losses, metrics = zip(*done, strict=True)
            return Step(torch.stack(losses).sum(), torch.cat(metrics))
        model.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)  # the exception is gone, and with it the traceback and the graph
        random.restore()


def _step_of_all_ranks(trainer: TrainerView, batches: Sequence[PackedBatch], compute: Compute, fill: Compute) -> Step:
    """The step of sharded weights: every rank runs the same number of micro-batches, and the backward passes average
    the gradients.

    Raises: OutOfMemoryError as soon as memory runs out, because the other ranks cannot repeat the step.
    """
    parts = micro_batches(batches, _budget(trainer, batches), trainer.cost)
    own = [part for part in parts if part.groups]
    done: list[tuple[Tensor, Tensor]] = []
    spare = pack([min(own[0].groups, key=trainer.cost) if own else stand_in(trainer)]).to(trainer.args.device)
    for index in range(most(trainer, len(own))):
        part, once = (own[index], compute) if index < len(own) else (spare, fill)
        try:
            done.append(once(part))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            trainer.step_limit.halve(trainer, part.groups, trainer.cost, error, "training")
    losses, metrics = zip(*done, strict=True)
    return Step(torch.stack(losses).sum(), torch.cat(metrics))


def _budget(trainer: TrainerView, batches: Sequence[PackedBatch]) -> int | None:
    """Most tokens of a micro-batch. Without `max_tokens_per_batch`, the largest batch of the data loader limits it."""
    tokens: int | None = trainer.step_limit.tokens
    if tokens is None or trainer.args.max_tokens_per_batch is not None:
        return tokens
    return min(tokens, max(sum(map(trainer.cost, batch.groups)) for batch in batches))


def non_finite(trainer: TrainerView, batches: Sequence[PackedBatch]) -> NonFiniteError:
    """The error for a step whose loss or gradient is NaN or infinite. It names the first 16 rows of the step."""
    what = "the loss" if not bool(torch.isfinite(trainer._tr_loss)) else "the gradient"
    rows = [group.id for batch in batches for group in batch.groups]
    return NonFiniteError(
        f"{what} of step {trainer.state.global_step + 1} is not finite; the weights were not changed. Rows of the "
        f"step: {', '.join(rows[:16])}. Halve the learning rate ({trainer.args.learning_rate:g}), keep max_grad_norm "
        "at 1, or use bf16 instead of fp16; in the first step, check the model's weights."
    )


def micro_batches(batches: Sequence[PackedBatch], budget: int | None, cost: Cost) -> list[PackedBatch]:
    """The groups of a step in micro-batches within the budget. A micro-batch that the data loader packed is reused.

    Args:
        budget: in tokens; None keeps the batches.
    Returns: micro-batches with groups; if this rank has no groups in the step, its first, empty batch.
    """
    if budget is None:
        return [batch for batch in batches if batch.groups] or list(batches[:1])
    groups = [part for batch in batches for group in batch.groups for part in split_group(group, budget, cost)]
    ready = {tuple(map(id, batch.groups)): batch for batch in batches}
    planned = []
    for indices in plan_micro_batches([cost(group) for group in groups], budget):
        members = [groups[index] for index in indices]
        planned.append(ready.get(tuple(map(id, members))) or pack(members))
    return planned or list(batches[:1])


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of torch's generators, so that a second attempt draws the same dropout as the first."""

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
        return cls(device, torch.get_rng_state(), own)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator)
