"""A gated MLP, `down(silu(gate(x)) * up(x))`, as one function that keeps half of the memory that autograd would keep.

Autograd keeps x, gate, silu(gate), up and their product. Kept here: x, gate and up; the rest is made again in the
backward pass, a few rows at a time so that it stays in the cache, and written over what is no longer needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from preftune.logps.layers.projection import Projection, as_parameter, cast, compute_dtype, product, product_backward

ELEMENTS_IN_CACHE = 2**17
"""Number of elements of one temporary on a CPU: three of them fit into a core's second-level cache."""


def gated_mlp(x: Tensor, gate: Projection, up: Projection, down: Projection) -> Tensor:
    """`down(silu(gate(x)) * up(x))` with gradients for x and the adapters of the three projections.

    Args:
        x: (..., D).
        gate, up, down: frozen weights (F, D), (F, D) and (D, F), each with or without adapter.
    Returns: (..., D) in the dtype a linear layer would have returned.
    """
    dtype = compute_dtype(x, gate.weight)
    tensors = (*gate.tensors, *up.tensors, *down.tensors)
    scales = (gate.scale, up.scale, down.scale)
    with torch.autocast(x.device.type, enabled=False):
        x_RD, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], down.weight.shape[0])
        if not torch.is_grad_enabled():
            return _forward(x_RD, _projections(tensors, scales, dtype), dtype).view(shape)
        function: Any = _GatedMlp
        out: Tensor = function.apply(x_RD, scales, dtype, *tensors)
        return out.view(shape)  # outside, so that it may be changed in place


def _forward(x: Tensor, projections: tuple[Projection, ...], dtype: torch.dtype) -> Tensor:
    """Nothing is kept."""
    gate, up, down = projections
    x_RD = x.to(dtype)
    gated, _ = product(x_RD, gate)
    raised, _ = product(x_RD, up)
    for rows in _in_cache(gated):
        torch.nn.functional.silu(gated[rows], inplace=True).mul_(raised[rows])
    return product(gated, down)[0]


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], dtype: torch.dtype, *tensors: Tensor | None) -> Tensor:
        gate, up, down = _projections(tensors, scales, dtype)
        x_RD = x.to(dtype)
        gate_RF, narrow_gate = product(x_RD, gate)
        up_RF, narrow_up = product(x_RD, up)
        hidden = _hidden(gate_RF, up_RF, torch.empty_like(gate_RF))
        out, narrow_down = product(hidden, down)
        # adapters as they were cast; the frozen weights may be large, and are cast again
        kept = [t for of, own in zip((gate, up, down), _fours(tensors), strict=True) for t in (*own[:2], of.a, of.b)]
        ctx.save_for_backward(x_RD, gate_RF, up_RF, narrow_gate, narrow_up, narrow_down, *kept)
        ctx.scales, ctx.dtype, ctx.x_dtype = scales, dtype, x.dtype
        ctx.dtypes = [None if t is None else t.dtype for own in _fours(tensors) for t in own[2:]]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x_RD, gate_RF, up_RF, narrow_gate, narrow_up, narrow_down, *tensors = ctx.saved_tensors
        gate, up, down = _projections(tensors, ctx.scales, ctx.dtype)
        grad_RD = grad.to(ctx.dtype)
        hidden = torch.empty_like(gate_RF)
        if down.a is not None:  # only the adapter's gradient needs the input of the last product again
            _hidden(gate_RF, up_RF, hidden)
        of_down = product_backward(grad_RD, hidden, narrow_down, down)
        grad_gate, grad_up = hidden, of_down.x_RD  # written over, row by row
        assert grad_up is not None
        for rows in _in_cache(gate_RF):
            _gate_backward(gate_RF[rows], up_RF[rows], grad_up[rows], grad_gate[rows])
        wanted: bool = ctx.needs_input_grad[0]
        of_up = product_backward(grad_up, x_RD, narrow_up, up, wants_x=wanted)
        of_gate = product_backward(grad_gate, x_RD, narrow_gate, gate, add_to_RD=of_up.x_RD, wants_x=wanted)
        grad_x = None if of_gate.x_RD is None else of_gate.x_RD.to(ctx.x_dtype)
        parameters: list[Tensor | None] = []
        for found, a, b in zip((of_gate, of_up, of_down), ctx.dtypes[::2], ctx.dtypes[1::2], strict=True):
            parameters += [None, None, as_parameter(found.a, a), as_parameter(found.b, b)]
        return grad_x, None, None, *parameters


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, keeping only the two; for an MLP with trainable weights."""
    function: Any = _GatedProduct
    out: Tensor = function.apply(gate.reshape(-1, gate.shape[-1]), up.reshape(-1, up.shape[-1]))
    return out.view(gate.shape)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _hidden(gate, up, torch.empty_like(gate))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        grad_up, grad_gate = grad.clone(), torch.empty_like(gate)
        for rows in _in_cache(gate):
            _gate_backward(gate[rows], up[rows], grad_up[rows], grad_gate[rows])
        return grad_gate, grad_up


def _hidden(gate_RF: Tensor, up_RF: Tensor, out: Tensor) -> Tensor:
    """`silu(gate) * up`, written to `out`."""
    for rows in _in_cache(gate_RF):
        torch.mul(torch.nn.functional.silu(gate_RF[rows]), up_RF[rows], out=out[rows])
    return out


def _gate_backward(gate: Tensor, up: Tensor, grad: Tensor, grad_gate: Tensor) -> None:
    """From the gradient of `silu(gate) * up` to those of gate (into `grad_gate`) and up (in place of `grad`)."""
    torch.mul(grad, up, out=grad_gate)
    grad_gate.copy_(torch.ops.aten.silu_backward(grad_gate, gate))
    grad.mul_(torch.nn.functional.silu(gate))


def _projections(
    tensors: Any, scales: tuple[float, ...], dtype: torch.dtype
) -> tuple[Projection, Projection, Projection]:
    weights, biases, a, b = (tensors[i::4] for i in range(4))
    parts = (cast(Projection(*of), dtype) for of in zip(weights, biases, a, b, scales, strict=True))
    gate, up, down = parts
    return gate, up, down


def _fours(tensors: Any) -> list[Any]:
    """Weight, bias, A and B of gate, up and down."""
    return [tensors[start : start + 4] for start in (0, 4, 8)]


def _in_cache(tensor: Tensor) -> list[slice]:
    """Slices over the first of two dimensions: a cacheful each on a CPU, all rows elsewhere."""
    rows, width = tensor.shape
    step = max(1, ELEMENTS_IN_CACHE // width) if tensor.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]
