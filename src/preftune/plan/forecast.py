"""A plan: memory of a rank, tokens, time and cost of a training, and what makes it fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from preftune.amounts import counted, duration
from preftune.plan.fit import Case, Change, fixes
from preftune.plan.memory import Memory
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
    measured: Rate | None = None
    """None: the rate is assumed (`assumed_rate`), where time or cost is asked for."""
    price_per_hour: float | None = None
    """Of one device."""

    @property
    def memory(self) -> Memory:
        """Of one rank."""
        return Case.of(self.shape, self.settings, self.workload).memory

    @property
    def work(self) -> Work:
        """Time and cost. On a CPU the rate is assumed from a short measurement, once in a process."""
        rate = self.measured or assumed_rate(self.settings)
        return work_of(self.shape, self.settings, self.workload, rate, price_per_hour=self.price_per_hour)

    @property
    def fixes(self) -> list[Change]:
        """What makes it fit."""
        return fixes(Case.of(self.shape, self.settings, self.workload))

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
        memory, work = self.memory, self.work
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
                "per_rank": {line.name: round(line.bytes) for line in memory.lines},
                "total_bytes": round(memory.total),
                "host_bytes": round(memory.host),
                "fits": memory.fits,
                "second_model_bytes": self.shape.second_model(),
            },
            "time": {
                "useful_flops": work.flops,
                "useful_flops_per_second_and_rank": work.rate.flops,
                "rate_from": work.rate.source,
                "seconds": work.seconds,
                "cost": work.cost,
            },
            "fixes": [
                {"flags": list(change.flags), "total_bytes": round(change.total), "gpus": change.case.settings.ranks}
                for change in self.fixes
            ],
        }


ROUGH = "rough: the layers of this architecture are not those of the formula"


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
