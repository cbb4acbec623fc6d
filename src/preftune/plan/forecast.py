"""A plan: memory of a rank, tokens, time and cost of a training, and what makes it fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from preftune.amounts import counted, duration
from preftune.plan.fit import Case, Change, fixes
from preftune.plan.memory import Memory, memory_of
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.work import Rate, Work, assumed_rate, work_of
from preftune.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is known of a training before it starts."""

    shape: ModelShape
    settings: Settings
    workload: Workload
    memory: Memory
    work: Work
    fixes: tuple[Change, ...]

    def line(self) -> str:
        """The plan in one line."""
        load, memory, work = self.workload, self.memory, self.work
        saved = f" ({load.saved:.0%} saved by sharing prompts)" if load.saved >= 0.005 else ""
        trained = round(load.tokens * load.epochs)
        parts = [
            f"plan: {counted(load.rows, load.unit)} in {counted(load.steps, 'step')}, {trained:,} tokens{saved}",
            f"about {size(memory.total)}{_limit(memory)}" + (" per rank" if self.settings.ranks > 1 else ""),
        ]
        if work.seconds is not None:
            parts.append(f"about {roughly(work.seconds)} ({_share(work.rate)})")
        if not memory.fits:
            parts.append("it does not fit (preftune plan says what would)")
        if not self.shape.usual:
            parts.append(ROUGH)
        return "; ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes, seconds, FLOPs."""
        load, settings = self.workload, self.settings
        return {
            "command": settings.command,
            "device": {
                "name": settings.device.name,
                "memory_bytes": settings.device.memory,
                "gpus": settings.gpus,
                "nodes": settings.nodes,
                "fsdp": sorted(settings.fsdp),
            },
            "model": {
                "parameters": self.shape.stored,
                "trainable": self.shape.trainable,
                "formula_is_exact": self.shape.usual,
            },
            "data": {
                "unit": load.unit,
                "rows": load.rows,
                "steps": load.steps,
                "epochs": load.epochs,
                "tokens_per_epoch": load.tokens,
                "tokens_saved_by_sharing": load.saved,
                "largest_micro_batch": asdict(load.largest),
            },
            "memory": {
                "per_rank": {line.name: round(line.bytes) for line in self.memory.lines},
                "total_bytes": round(self.memory.total),
                "host_bytes": round(self.memory.host),
                "fits": self.memory.fits,
                "second_model_bytes": self.shape.second_model(),
            },
            "time": {
                "useful_flops": self.work.flops,
                "useful_flops_per_second_and_rank": self.work.rate.flops,
                "rate_from": self.work.rate.source,
                "seconds": self.work.seconds,
                "cost": self.work.cost,
            },
            "fixes": [
                {"flags": list(change.flags), "total_bytes": round(change.total), "gpus": change.case.settings.ranks}
                for change in self.fixes
            ],
        }


ROUGH = "rough: the layers of this architecture are not those of the formula"


def plan_of(
    shape: ModelShape,
    settings: Settings,
    workload: Workload,
    *,
    rate: Rate | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """The plan of a training.

    Args:
        rate: a measured one; by default it is assumed (`assumed_rate`).
        price_per_hour: of one device.
    """
    rate = rate or assumed_rate(settings)
    return Plan(
        shape,
        settings,
        workload,
        memory_of(shape, settings, workload.largest, micro_batches=workload.micro_batches),
        work_of(shape, settings, workload, rate, price_per_hour=price_per_hour),
        tuple(fixes(Case.of(shape, settings, workload))),
    )


def size(count: float) -> str:
    """Bytes as GB or MB, in powers of a thousand."""
    if not round(count):
        return "0 GB"
    if abs(count) < 95e6:
        return f"{count / 1e6:.1f} MB" if abs(count) < 9.95e6 else f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB" if count >= 9.95e9 else f"{count / 1e9:.2f} GB"


def roughly(seconds: float) -> str:
    """A forecast time, not finer than a forecast is."""
    if seconds < 60:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return duration(60 * round(seconds / 60))


def _limit(memory: Memory) -> str:
    return f" of {size(memory.limit)} at the peak" if memory.limit else " at the peak"


def _share(rate: Rate) -> str:
    return "assumed rate" if rate.source.startswith("assumed") else "measured rate"
