"""What only a GPU can show. Everything else about the CUDA path is tested on the CPU, in `tests/logps`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_gpu() -> Iterator[None]:
    """No test of this folder runs without CUDA; and every one compiles for itself, or models would share a limit."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; what the kernels are handed is tested in tests/logps")
    torch.compiler.reset()
    yield
    torch.cuda.empty_cache()


def can(capability: tuple[int, int]) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= capability
