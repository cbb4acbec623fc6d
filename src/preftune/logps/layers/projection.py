"""A frozen linear layer with a low-rank adapter, as one product: the adapter is added in place.

    y = x W^T + bias + s (x A^T) B^T

PEFT computes the two terms apart, scales one and adds them: two more passes over the output forward and as many
backward. Here `addmm_` accumulates into the output, and the backward pass accumulates into the gradient of x. Only x
and the narrow x A^T are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Projection:
    """The tensors of one linear layer, frozen except for its adapter; `a` and `b` are None without an adapter."""

    weight: Tensor
    """(O, D), frozen."""
    bias: Tensor | None
    """(O,), frozen."""
    a: Tensor | None = None
    """(r, D)."""
    b: Tensor | None = None
    """(O, r)."""
    scale: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The tensors that an autograd function needs as separate arguments."""
        return self.weight, self.bias, self.a, self.b


def product(x_RD: Tensor, of: Projection) -> tuple[Tensor, Tensor | None]:
    """The layer's output (R, O), and x A^T (R, r) for the backward pass. All tensors in one dtype."""
    out = torch.nn.functional.linear(x_RD, of.weight, of.bias)
    if of.a is None or of.b is None:
        return out, None
    narrow = x_RD @ of.a.T
    out.addmm_(narrow, of.b.T, alpha=of.scale)
    return out, narrow


class ProductGradients(NamedTuple):
    """The result of `product_backward`; None where no gradient is needed or there is no parameter."""

    x_RD: Tensor | None
    a: Tensor | None
    b: Tensor | None


def product_backward(
    grad_RO: Tensor,
    x_RD: Tensor,
    narrow_Rr: Tensor | None,
    of: Projection,
    *,
    add_to_RD: Tensor | None = None,
    wants_x: bool = True,
) -> ProductGradients:
    """Gradients of `product` with respect to x, A and B.

    Args:
        grad_RO: the gradient of the output.
        x_RD, narrow_Rr: the input, and what `product` returned besides its output.
        add_to_RD: a gradient of the same x from elsewhere, which is added to in place.
        wants_x: False leaves the gradient of x out.
    """
    grad_x = None
    if wants_x:
        grad_x = grad_RO @ of.weight if add_to_RD is None else add_to_RD.addmm_(grad_RO, of.weight)
    if of.a is None or of.b is None or narrow_Rr is None:
        return ProductGradients(grad_x, None, None)
    grad_narrow = (grad_RO @ of.b).mul_(of.scale)
    if grad_x is not None:
        grad_x.addmm_(grad_narrow, of.a)
    return ProductGradients(grad_x, grad_narrow.T @ x_RD, (grad_RO.T @ narrow_Rr).mul_(of.scale))


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes: autocast's if it is on, otherwise the weight's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def cast(of: Projection, dtype: torch.dtype) -> Projection:
    """The projection in `dtype`; gradients of A and B are returned in it and cast back by the caller."""
    bias, a, b = (None if t is None else t.to(dtype) for t in (of.bias, of.a, of.b))
    return Projection(of.weight.to(dtype), bias, a, b, of.scale)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype
    ) -> Tensor:
        of = cast(Projection(weight, bias, a, b, scale), dtype)
        x_RD = x.to(dtype)
        out, narrow = product(x_RD, of)
        ctx.save_for_backward(x_RD, narrow, weight, bias, of.a, of.b)  # cast once: a GPU waits for small launches
        ctx.scale, ctx.dtype, ctx.x_dtype, ctx.dtypes = scale, dtype, x.dtype, (a.dtype, b.dtype)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x_RD, narrow, weight, bias, a, b = ctx.saved_tensors
        of = cast(Projection(weight, bias, a, b, ctx.scale), ctx.dtype)
        found = product_backward(grad.to(ctx.dtype), x_RD, narrow, of, wants_x=ctx.needs_input_grad[0])
        grad_x = None if found.x_RD is None else found.x_RD.to(ctx.x_dtype)
        grad_a, grad_b = map(as_parameter, (found.a, found.b), ctx.dtypes)
        return grad_x, None, None, grad_a, grad_b, None, None


def adapted_linear(x: Tensor, of: Projection) -> Tensor:
    """`linear(x, W, bias) + scale * linear(linear(x, A), B)` with gradients for x, A and B.

    Args:
        x: (..., D).
        of: the layer; W and bias frozen.
    Returns: (..., O) in the dtype a linear layer would have returned.
    """
    dtype = compute_dtype(x, of.weight)
    with torch.autocast(x.device.type, enabled=False):
        if of.a is None or of.b is None:
            bias = None if of.bias is None else of.bias.to(dtype)
            return torch.nn.functional.linear(x.to(dtype), of.weight.to(dtype), bias)
        function: Any = _AdaptedLinear
        # the shape is given back outside: a view made inside must not be changed in place, and models clamp queries
        out: Tensor = function.apply(x.reshape(-1, x.shape[-1]), of.weight, of.bias, of.a, of.b, of.scale, dtype)
        return out.view(*x.shape[:-1], of.weight.shape[0])


def as_parameter(gradient: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """The gradient in the dtype of its parameter; None without a parameter."""
    return None if gradient is None or dtype is None else gradient.to(dtype)
