"""Packed attention on a CPU in full precision: matrix products over blocks of queries, one function for a whole row.

A block of queries meets exactly the keys it may see (the half of a causal matrix that would be masked is not computed),
the query heads that share a key head are rows of one matrix, and one workspace serves all blocks, so that no page of
memory is touched for the first time in every layer. Kept for the backward pass: the inputs and the output, nothing of
the size of queries x keys.

Shapes: H query heads, G of them to each of the J = H / G key heads, R tokens of the row, d the width of a head. Inside,
queries are (J, R x G, d): the G heads of one token are neighbours, so that any run of tokens is a slice.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from preftune.logps.layout import GroupLayout, Segment

_BLOCK = 160
"""Approximate number of queries computed at a time."""


def serves(query: Tensor, value: Tensor, layout: GroupLayout, window: int | None) -> bool:
    """Whether `blocked` can be used: CPU, float32 or float64, one dtype and one width of heads, and no window that
    would hide a key.

    (Where a CPU has bfloat16 instructions, PyTorch's fused kernels use them.)
    """
    return (
        query.device.type == "cpu"
        and query.dtype == value.dtype
        and query.dtype in (torch.float32, torch.float64)
        and query.shape[3] == value.shape[3]
        and (window is None or window >= layout.max_k)
    )


def blocked(query: Tensor, key: Tensor, value: Tensor, layout: GroupLayout, scale: float) -> Tensor:
    """Attention of every segment of the layout over its prompt's keys and its own.

    Args:
        query: (1, H, R, d); key and value with H or a divisor of H heads. No dropout, no window.
    Returns: (1, R, H, d).
    """
    function: Any = _Blocked
    out: Tensor = function.apply(query, key, value, layout, scale)
    return out


class _Block(NamedTuple):
    """Queries `start:stop` of the row, which see the first `visible` keys of their segment, the last ones causally."""

    start: int
    stop: int
    visible: int


class _Plan(NamedTuple):
    """The blocks of every segment, and the most scores that one head needs at a time."""

    segments: tuple[tuple[Segment, tuple[_Block, ...]], ...]
    scores: int
    rows: int


class _Row:
    """A row's tensors in the order of the products, and a buffer for the scores of one block."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, layout: GroupLayout, scale: float) -> None:
        self.heads, self.width = key.shape[1], query.shape[3]
        self.shared = query.shape[1] // self.heads
        self.plan = _plan(layout)
        self.query = self.inwards(query[0].transpose(0, 1)) * scale
        self.key, self.value = key[0].contiguous(), value[0].contiguous()
        room = self.heads * self.shared * self.plan.scores
        self._one, self._other = query.new_empty(room), query.new_empty(room)
        rows = self.plan.rows
        ahead = torch.full((rows, rows), -torch.inf, dtype=query.dtype).triu_(1)
        self._ahead = ahead.repeat_interleave(self.shared, 0)

    def inwards(self, tensor_RHd: Tensor) -> Tensor:
        """(R, H, d) to (J, R x G, d)."""
        rows, _, width = tensor_RHd.shape
        return tensor_RHd.reshape(rows, self.heads, -1, width).transpose(0, 1).reshape(self.heads, -1, width)

    def outwards(self, tensor: Tensor) -> Tensor:
        """(J, R x G, d) to (R, H, d)."""
        heads, _, width = tensor.shape
        return tensor.view(heads, -1, self.shared, width).transpose(0, 1).reshape(-1, heads * self.shared, width)

    def of(self, block: _Block) -> slice:
        """The block's queries in the inner order."""
        return slice(block.start * self.shared, block.stop * self.shared)

    def weights(self, keys: Tensor, block: _Block) -> tuple[Tensor, Tensor]:
        """Softmax of the block's scores, (J, queries x G, visible), and a buffer of the same shape."""
        rows = block.stop - block.start
        shape = (self.heads, rows * self.shared, block.visible)
        size = shape[0] * shape[1] * shape[2]
        scores, weights = self._one[:size].view(shape), self._other[:size].view(shape)
        torch.bmm(self.query[:, self.of(block)], keys[:, : block.visible].transpose(1, 2), out=scores)
        scores[:, :, block.visible - rows :] += self._ahead[: rows * self.shared, :rows]
        torch.softmax(scores, -1, out=weights)
        return weights, scores


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: GroupLayout, scale: float) -> Tensor:
        row = _Row(query, key, value, layout, scale)
        inner = torch.empty_like(row.query)
        for segment, blocks in row.plan.segments:
            keys, values = segment.seen(row.key), segment.seen(row.value)
            for block in blocks:
                weights, _ = row.weights(keys, block)
                inner[:, row.of(block)] = torch.bmm(weights, values[:, : block.visible])
        out = row.outwards(inner)[None]
        ctx.save_for_backward(query, key, value, out)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, out = ctx.saved_tensors
        row = _Row(query, key, value, ctx.layout, ctx.scale)
        grads = row.inwards(grad[0])
        # softmax's gradient needs, per query, the sum over keys of weight x its gradient, which is grad . out
        along = row.inwards((grad[0] * out[0]).sum(-1, keepdim=True))
        grad_query = torch.empty_like(row.query)
        grad_key, grad_value = torch.zeros_like(row.key), torch.zeros_like(row.value)
        for segment, blocks in row.plan.segments:
            keys, values = segment.seen(row.key), segment.seen(row.value)
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            for block in blocks:
                at, seen = row.of(block), slice(block.visible)
                weights, scores = row.weights(keys, block)
                grad_values[:, seen].baddbmm_(weights.transpose(1, 2), grads[:, at])
                torch.bmm(grads[:, at], values[:, seen].transpose(1, 2), out=scores)
                scores.sub_(along[:, at]).mul_(weights)  # now the gradient of the scores
                grad_query[:, at] = torch.bmm(scores, keys[:, seen])
                grad_keys[:, seen].baddbmm_(scores.transpose(1, 2), row.query[:, at])
            _add_seen(grad_key, grad_keys, segment)
            _add_seen(grad_value, grad_values, segment)
        grad_query = row.outwards(grad_query.mul_(ctx.scale)).transpose(0, 1)
        return grad_query[None], grad_key[None], grad_value[None], None, None


def _plan(layout: GroupLayout) -> _Plan:
    """The plan is made once per layout, not once per layer."""
    known: _Plan | None = layout.__dict__.get("_cpu_plan")
    if known is None:
        segments = tuple((segment, tuple(_blocks(segment))) for segment in layout.segments)
        blocks = [block for _, of in segments for block in of]
        scores = max((b.stop - b.start) * b.visible for b in blocks)
        known = _Plan(segments, scores, max(b.stop - b.start for b in blocks))
        layout.__dict__["_cpu_plan"] = known
    return known


def _blocks(segment: Segment) -> list[_Block]:
    """The segment's queries in parts of about equal size."""
    step = math.ceil(segment.queries / max(1, round(segment.queries / _BLOCK)))
    starts = range(segment.start, segment.stop, step)
    stops = [min(start + step, segment.stop) for start in starts]
    return [_Block(a, b, segment.prefix + b - segment.start) for a, b in zip(starts, stops, strict=True)]


def _add_seen(total: Tensor, part: Tensor, segment: Segment) -> None:
    """The reverse of `Segment.seen`: the gradients of a prompt are summed over its completions."""
    total[:, segment.start : segment.stop] += part[:, segment.prefix :]
    if segment.prefix:
        total[:, segment.prefix_start : segment.prefix_stop] += part[:, : segment.prefix]
