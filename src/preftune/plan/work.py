"""Useful FLOPs of a training, its time and its cost.

Useful FLOPs of a step: `2 (k + r) (N R + d V T)`, and of attention `4 (3 + r) layers A S`, where N are the parameters
of the trunk, R the tokens of the row, d V the head, T the scored tokens, A the width of the query heads and S the pairs
of a query and a key that it sees. k = 2 with an adapter, 3 in full fine-tuning; r = 1 where a reference is scored. What
checkpointing recomputes is not useful work."""

from __future__ import annotations

from dataclasses import dataclass

from preftune.plan.devices import matrix_rate
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.workload import MicroBatch, Workload


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a rank does useful work."""

    flops: float | None
    """Useful FLOP/s of one rank; None if it is not known."""
    source: str


@dataclass(frozen=True, slots=True)
class Work:
    """What a training costs."""

    flops: float
    """Useful FLOPs of all steps on all ranks."""
    seconds: float | None
    rate: Rate
    cost: float | None
    """At the price of a device and an hour, of all devices."""


def useful_flops(shape: ModelShape, batch: MicroBatch, *, reference: int) -> float:
    """Useful FLOPs of computing a micro-batch once, forward and backward.

    Args:
        reference: 1 if a reference scores it as well, otherwise 0.
    """
    passes = 3 if shape.full else 2
    products = 2.0 * (passes + reference) * (shape.trunk * batch.tokens + shape.head * batch.scored)
    return products + 4.0 * (3 + reference) * shape.layers * shape.query_width * batch.seen


def work_of(
    shape: ModelShape, settings: Settings, workload: Workload, rate: Rate, *, price_per_hour: float | None = None
) -> Work:
    """Time and cost of a whole training.

    Args:
        price_per_hour: of one device.
    """
    one = useful_flops(shape, workload.sampled, reference=0) / workload.sample
    scored = useful_flops(shape, workload.sampled, reference=1) / workload.sample - one
    # every row is scored once, whatever the number of epochs
    scored_rows = 0.0 if settings.reference == "none" else min(workload.rows, workload.trained_rows)
    flops = one * workload.trained_rows + scored * scored_rows
    seconds = None if not rate.flops else flops / rate.flops / settings.ranks
    cost = None
    if seconds is not None and price_per_hour is not None:
        cost = seconds / 3600 * price_per_hour * settings.ranks
    return Work(flops, seconds, rate, cost)


def assumed_rate(settings: Settings) -> Rate:
    """The rate of a device on which nothing was measured."""
    device = settings.device
    share = device.efficiency(checkpointing=settings.checkpointing, compute=settings.compute)
    rate = device.rate
    if rate is None and device.kind == "cpu":
        rate = matrix_rate(settings.precision.compute)
    if rate is None:
        return Rate(None, f"nothing is known about the rate of {device.name}; --device this measures it")
    return Rate(rate * share, f"assumed: {share:.0%} of {rate / 1e12:.3g} TFLOP/s, {device.rate_from}")
