"""Devices by name: memory, the published rate of dense half-precision products, and what of it is reached.

Only one rate has been measured on a graphics card (docs/notes.md, "A first day on a GPU"): an H200 multiplies matrices
at 715 TFLOP/s, 72% of the published 989, and training reaches 36% of the measured rate without activation
checkpointing and 29% with it. The forecast for every other card assumes the same shares, and says so."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

REACHED = 715 / 989
"""Measured over published rate of matrix products, H200."""
EFFICIENCY = {False: 0.36, True: 0.29}
"""Useful over measured rate on a graphics card, without and with activation checkpointing."""
CPU_EFFICIENCY = {4: 0.60, 2: 0.42}
"""The same on a CPU by bytes of a number: about the middle of the shares in docs/performance.md, which are 52% to 69%
in float32, and 41% and 43% in bfloat16.
"""

_GB = 10**9


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or the CPU of a machine."""

    name: str
    kind: str
    """cuda or cpu."""
    memory: int
    """Bytes that a program can use."""
    rate: float | None
    """FLOP/s of matrix products in the training's number format; None if it is not known."""
    half: str | None
    """The half precision of its matrix units: bfloat16, float16, or None."""
    rate_from: str

    @property
    def flash(self) -> bool:
        """Whether attention runs in the flash kernels: they and bfloat16 came with compute capability 8.0."""
        return self.half == "bfloat16"

    def efficiency(self, *, checkpointing: bool, compute: int) -> float:
        return EFFICIENCY[checkpointing] if self.kind == "cuda" else CPU_EFFICIENCY.get(compute, 0.5)


def _card(name: str, memory: float, published: float, *, half: str = "bfloat16") -> Device:
    source = f"{REACHED:.0%} of the published {published:g}; both shares were measured on an H200"
    if name == "h200":
        source = "both were measured there"
    return Device(name, "cuda", round(memory * _GB), published * REACHED * 1e12, half, rate_from=source)


CARDS = {
    card.name: card
    for card in (
        _card("t4", 15.6, 65, half="float16"),
        _card("l4", 23.7, 121),
        _card("a100-80", 84.9, 312),
        _card("h100", 85.0, 989),
        _card("h200", 150.1, 989),
    )
}


def device_named(name: str) -> Device:
    """A device by its name; `cpu` and `this` are of this machine. Raises: KeyError."""
    if name == "cpu":
        return this_cpu()
    if name == "this":
        return this_card() if torch.cuda.is_available() else this_cpu()
    return CARDS[name]


def this_cpu() -> Device:
    """The CPU of this machine. Its rate is measured once, in a fraction of a second, when it is needed."""
    return Device(
        "cpu",
        "cpu",
        usable_memory() or 0,
        None,
        None,
        rate_from="a product measured here; the share is that of docs/performance.md",
    )


def this_card(index: int | None = None) -> Device:
    """The current card of this machine; its rate is that of the card of the table with its name, if there is one."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    known = next((one for key, one in CARDS.items() if key.split("-")[0] in card.name.lower()), None)
    return Device(
        card.name,
        "cuda",
        card.total_memory,
        None if known is None else known.rate,
        "bfloat16" if (card.major, card.minor) >= (8, 0) else "float16",
        rate_from="unknown" if known is None else known.rate_from,
    )


def usable_memory() -> int | None:
    """Bytes of main memory, or the container's limit if there is one; None where the system does not report it."""
    if sys.platform == "win32":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


@functools.cache
def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of one product as models have it on this CPU: the best of three."""
    return rate_of_product((1024, 576, 1536), dtype, "cpu", windows=3)


def rate_of_product(
    size: tuple[int, int, int], dtype: torch.dtype, device: str, *, windows: int, seconds: float = 0.0
) -> float:
    """FLOP/s of a product of matrices: the best window counts.

    Args:
        size: rows, inner, columns.
        seconds: least length of a window, which has one product or more. The first product is not timed.
    """
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator).to(device, dtype)
    right = torch.randn(inner, columns, generator=generator).to(device, dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    multiply = functools.partial(_multiply, left, right, out)
    multiply()
    return 2 * rows * inner * columns / min(_mean_seconds(multiply, seconds) for _ in range(windows))


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    torch.mm(left, right, out=out)
    if out.device.type == "cuda":
        torch.cuda.synchronize()


def _mean_seconds(multiply: Callable[[], None], least: float) -> float:
    """Mean over one window."""
    count, began = 0, time.perf_counter()
    while True:
        multiply()
        count += 1
        if (passed := time.perf_counter() - began) >= least:
            return passed / count
