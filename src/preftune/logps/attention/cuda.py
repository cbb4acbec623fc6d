"""Packed attention on CUDA: all segments of all groups in one flash kernel with different queries and keys."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from preftune.logps.layout import GroupLayout

# Chips whose flash kernels go backward through heads of more than 192; their consumer siblings lack the shared memory.
_WIDE_BACKWARD = ((8, 0), (9, 0), (10, 0))


def serves(query: Tensor, value: Tensor) -> bool:
    """Whether `varlen` can take these heads, on this device, with this torch."""
    return (
        query.device.type == "cuda"
        and query.dtype == value.dtype
        and flash_takes(query.dtype, query.shape[-1], value.shape[-1], torch.cuda.get_device_capability(query.device))
        and torch.backends.cuda.is_flash_attention_available()
        and "window_size" in _parameters_of(_varlen_attn())
    )


def flash_takes(dtype: torch.dtype, head_size: int, value_size: int, capability: tuple[int, int]) -> bool:
    """Whether torch's flash kernels support the input: half precision, compute capability 8.0 and newer, keys and
    values of one size, a multiple of 8 up to 256 (192 on cards whose shared memory does not suffice for the backward
    pass).
    """
    limit = 256 if capability in _WIDE_BACKWARD else 192
    return (
        dtype in (torch.float16, torch.bfloat16)
        and capability >= (8, 0)
        and head_size == value_size <= limit
        and head_size % 8 == 0
    )


def varlen(query: Tensor, key: Tensor, value: Tensor, layout: GroupLayout, scale: float, window: int | None) -> Tensor:
    """All segments in one kernel. Only K and V of the prompts are gathered again.

    Args:
        query: (1, H, R, d); key and value with as many or fewer heads.
        window: number of keys that a query sees, including its own; None for all keys before it.
    Returns: (1, R, H, d).
    """
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (R, H, d)
    k, v = k.index_select(0, layout.key_index), v.index_select(0, layout.key_index)
    varlen_attn = _varlen_attn()
    # (left, right) keys around the query's own: causal is right = 0, a window of w keys has left = w - 1
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if flash_groups_heads():
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    elif q.shape[1] != k.shape[1]:  # torch 2.11 asks for as many key heads as query heads
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    out: Any = varlen_attn(q, k, v, layout.cu_seq_q, layout.cu_seq_k, layout.max_q, layout.max_k, **options)
    packed: Tensor = out.unsqueeze(0)
    return packed


def flash_groups_heads() -> bool:
    """Whether this torch's flash kernels take fewer key heads than query heads (torch 2.11 does not)."""
    return "enable_gqa" in _parameters_of(_varlen_attn())


def _varlen_attn() -> Any:
    from torch.nn.attention import varlen as module

    return module.varlen_attn


@functools.cache
def _parameters_of(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
