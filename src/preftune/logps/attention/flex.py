"""Packed attention on CUDA with FlexAttention, for cases that flash kernels do not support: soft caps (Gemma 2),
attention sinks (gpt-oss), keys and values of different sizes (DeepSeek), heads of odd sizes.

The visible keys of a query are two intervals of the row: in its own segment, and in the prompt before it. A window only
moves their beginnings, so one mask function suffices for every model, layer and layout, and nothing is compiled twice.
Sinks are applied afterwards: a sink of score s takes the share exp(s) / (exp(lse) + exp(s)) of the softmax and has no
value, so the result is the output times sigmoid(lse - s).

float32 and cards older than compute capability 8.0 are computed by segment (`attention.packed`): SDPA keeps the
accuracy of float32, and Triton's kernels are not faster there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from preftune.log import warn
from preftune.logps.layout import GroupLayout, plan_layout
from preftune.types import TokenizedGroup

_BLOCK = 128  # FlexAttention's own default
_TOLERANCE = 0.03  # relative, of half-precision values and gradients; a wrong mask is off by tenths


class Visible(NamedTuple):
    """Keys that each query of the row sees: `own_from:query + 1` and `prompt_from:prompt_to`; (R,) int32 each."""

    own_from: Tensor
    prompt_from: Tensor
    prompt_to: Tensor


class Blocks(NamedTuple):
    """FlexAttention's tables of blocks of 128: the number and the indices of the blocks that each block of queries
    (`kv_`) or keys (`q_`) meets, partly or fully. (1, 1, blocks) and (1, 1, blocks, blocks) int32.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


def serves(query: Tensor, key: Tensor, value: Tensor, *, softcap: float | None, sinks: Tensor | None) -> bool:
    """Whether `attend` supports these heads on this device, tested once per kind of heads."""
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16) or query.dtype != value.dtype:
        return False
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    heads = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
    return _tried(query.device, query.dtype, heads, softcap, sinks is not None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    scale: float,
    window: int | None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Attention of a packed row.

    Args:
        query: (1, H, R, d); key and value with as many or fewer heads.
        window: number of keys that a query sees, including its own; None for all keys before it.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: (H,) scores of a key that has no value.
        kernel: replaces the compiled one, for tests.
    Returns: (1, R, H, d).
    """
    seen, blocks = masks_of(layout, window, query.device)
    # as text: Dynamo makes a changed float symbolic, and FlexAttention takes none that is
    numbers = (repr(scale), None if softcap is None else repr(softcap))
    out, lse = (kernel or _compiled())(query, key, value, seen, blocks, *numbers)
    if sinks is not None:
        share = torch.sigmoid(lse - sinks.to(lse.dtype)[None, :, None])
        out = (out * share[..., None]).to(query.dtype)
    packed: Tensor = out.transpose(1, 2)
    return packed


def flex(
    query: Tensor, key: Tensor, value: Tensor, seen: Visible, blocks: Blocks, scale: str, softcap: str | None
) -> tuple[Tensor, Tensor]:
    """FlexAttention's output (1, H, R, d) and the log-sum-exp of every query's scores (1, H, R); this function is
    compiled.

    The arguments are only tensors and texts, so that for the compiler only sizes change between layouts.
    """
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

    own_from, prompt_from, prompt_to = seen
    cap = 0.0 if softcap is None else float(softcap)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        in_own = (k >= own_from[q]) & (k <= q)
        in_prompt = (k >= prompt_from[q]) & (k < prompt_to[q])
        return in_own | in_prompt

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    row = query.shape[2]
    out: Any = flex_attention(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=BlockMask(seq_lengths=(row, row), BLOCK_SIZE=(_BLOCK, _BLOCK), mask_mod=sees, **blocks._asdict()),
        scale=float(scale),
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out[0], out[1].lse


def visible(layout: GroupLayout, window: int | None) -> Visible:
    """The two intervals of every query, on the CPU."""
    queries = torch.tensor([s.queries for s in layout.segments])

    def per_query(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(queries)

    own_from = per_query([s.start for s in layout.segments])
    prompt_from = per_query([s.prefix_start for s in layout.segments])
    prompt_to = per_query([s.prefix_stop for s in layout.segments])
    if window is not None:
        at = torch.arange(len(own_from))
        others = own_from - prompt_to  # completions of the same prompt that lie between it and the query's own
        prompt_from = torch.minimum(torch.maximum(prompt_from, at - others - window + 1), prompt_to)
        own_from = torch.maximum(own_from, at - window + 1)
    return Visible(own_from.int(), prompt_from.int(), prompt_to.int())


def masks_of(layout: GroupLayout, window: int | None, device: torch.device) -> tuple[Visible, Blocks]:
    """The visible keys, by query and by block; made once per layout and window, not once per layer.

    They are built from the intervals: `create_block_mask` would need R x R booleans, a gigabyte for a row of 32k
    tokens."""
    if window is not None and window >= layout.max_k:
        window = None
    cache: dict[object, tuple[Visible, Blocks]] = layout.__dict__.setdefault("_flex_masks", {})
    if (window, device) not in cache:
        seen = Visible(*(t.to(device) for t in visible(layout, window)))
        cache[window, device] = seen, _blocks(seen)
    return cache[window, device]


def _blocks(seen: Visible) -> Blocks:
    row = len(seen.own_from)
    count = -(-row // _BLOCK)
    own = _touched_and_full(seen.own_from, torch.arange(1, row + 1, device=seen.own_from.device), count)
    prompt = _touched_and_full(seen.prompt_from, seen.prompt_to, count)

    def by_query_block(rows: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(rows, (0, 0, 0, count * _BLOCK - row))
        return padded.view(count, _BLOCK, count)

    full = by_query_block(own[1] | prompt[1]).all(1)  # a block that the row only half fills is not full
    partial = by_query_block(own[0] | prompt[0]).any(1) & ~full
    return Blocks(*_ordered(partial), *_ordered(full), *_ordered(partial.T), *_ordered(full.T))


def _touched_and_full(begin: Tensor, end: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """(R, blocks) each: does the interval `begin:end` of a query touch a block of keys, and does it fill it?"""
    first = torch.arange(blocks, device=begin.device) * _BLOCK
    begin, end = begin[:, None], end[:, None]
    touched = (begin < end) & (begin < first + _BLOCK) & (end > first)
    return touched, touched & (begin <= first) & (end >= first + _BLOCK)


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """A (blocks, blocks) boolean matrix as FlexAttention keeps it: entries per row, and their columns first."""
    order = dense.int().argsort(dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None].contiguous()


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex, dynamic=True, fullgraph=True)


@functools.cache
def _tried(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int, int], softcap: float | None, sinks: bool
) -> bool:
    """Compiles the kernel for these heads and compares values and gradients with plain attention; a failure is reported
    once.

    It runs in a separate thread, without the caller's autocast, activation checkpoints and `no_grad`.
    """
    try:
        with ThreadPoolExecutor(1) as pool:
            error = pool.submit(difference_from_plain, device, dtype, heads, softcap, sinks).result()
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # no Triton, no compiler, heads too large for a kernel: any of them is reported
        lines = str(failure).strip().splitlines() or ["no message"]
        reason = f"FlexAttention does not compile on this machine ({type(failure).__name__}: {lines[0][:160]})"
    else:
        if error <= _TOLERANCE:
            return True
        reason = f"FlexAttention deviates by {error:.2g} on this machine"
    warn(f"{reason}; attention is computed segment by segment instead, which is slower.")
    return False


def difference_from_plain(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int, int],
    softcap: float | None,
    sinks: bool,
    kernel: Callable[..., Any] | None = None,
) -> float:
    """Largest relative difference of output and gradients between `attend` and the formula, on random numbers.

    Args:
        heads: query heads, key heads, size of a query, size of a value.
    """
    ids = [0] * 356
    # 840 rows, 7 blocks: a number of blocks that happened to be the number of heads would be compiled in as a constant
    groups = [TokenizedGroup(ids[:200], (ids[:120], ids[:160], ids[:3]), ()), TokenizedGroup([0], (ids,), ())]
    layout = plan_layout(groups).to(device)
    rows = int(layout.cu_seq_q[-1])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads[0], rows, heads[2]), (1, heads[1], rows, heads[2]), (1, heads[1], rows, heads[3]), (heads[0],)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    scale, window = heads[2] ** -0.5, 70
    results = []
    for wide in (False, True):
        q, k, v, s = (t.double().requires_grad_() if wide else t.clone().requires_grad_() for t in inputs)
        options: dict[str, Any] = {"softcap": softcap, "sinks": s if sinks else None}
        if wide:
            out = plain(q, k, v, layout, scale, window, **options)
        else:
            out = attend(q, k, v, layout, scale, window, kernel=kernel, **options)
        upstream = torch.linspace(-1, 1, out.numel(), device=device).view_as(out).to(out.dtype)
        wanted = [q, k, v, s] if sinks else [q, k, v]
        results.append([out.detach(), *torch.autograd.grad(out, wanted, upstream)])
    differences = [((a.double() - b).norm() / b.norm()) for a, b in zip(*results, strict=True)]
    return float(torch.stack(differences).nan_to_num(torch.inf).max())


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    scale: float,
    window: int | None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The formula that `attend` computes, with all R x R scores in memory. (1, R, H, d)."""
    own_from, prompt_from, prompt_to = (t.to(query.device)[:, None] for t in visible(layout, window))
    at = torch.arange(len(own_from), device=query.device)
    q, k = at[:, None], at[None]
    allowed = ((k >= own_from) & (k <= q)) | ((k >= prompt_from) & (k < prompt_to))
    return explicit(query, key, value, allowed, scale, softcap=softcap, sinks=sinks).transpose(1, 2)


def explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """(1, H, queries, d): attention with the score matrix in memory; causal without a mask."""
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = (query @ key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        queries, keys = scores.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    if sinks is not None:
        share = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, share.to(scores.dtype)], -1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return torch.dropout(weights, dropout, dropout > 0) @ value
