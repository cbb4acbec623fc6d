"""The rate at which this machine multiplies matrices: the yardstick for useful FLOP/s, measured in the same run.

    python benchmarks/matrix_rate.py [--dtype float32] [--device cpu]

Products as a small model has them, and larger ones; each in five windows of at least 0.15 s, of which the best counts.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

SIZES = {
    "cpu": ((1024, 576, 1536), (4096, 576, 1536), (1024, 576, 8192), (2048, 2048, 2048)),
    "cuda": ((8192, 2048, 8192), (8192, 4096, 16384), (8192, 8192, 8192), (16384, 8192, 8192)),
}
"""(rows, inner, columns)."""
_WINDOWS, _WINDOW_S = 5, 0.15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    print(json.dumps(matrix_rate(options.dtype, options.device)))
    return 0


def matrix_rate(dtype: str, device: str) -> dict[str, Any]:
    """GFLOP/s of every product, and of the best one."""
    import torch

    from preftune.plan.devices import rate_of_product

    kind, rates = getattr(torch, dtype), {}
    for size in SIZES[device]:
        rate = rate_of_product(size, kind, device, windows=_WINDOWS, seconds=_WINDOW_S)
        rates["x".join(map(str, size))] = round(rate / 1e9, 1)
    return {"dtype": dtype, "best": max(rates.values()), "gflops": rates}


def rate_now(dtype: str) -> float:
    """GFLOP/s of one product as a small model has it, on the CPU, over one window: for use between a run's steps."""
    import torch

    from preftune.plan.devices import rate_of_product

    return rate_of_product(SIZES["cpu"][0], getattr(torch, dtype), "cpu", windows=1, seconds=_WINDOW_S) / 1e9


if __name__ == "__main__":
    sys.exit(main())
