"""Finds, by trial, the layers of a model that `projection` and `gated_mlp` can compute.

Two kinds of module are recognised by their attributes, not by their class: PEFT's LoRA around a frozen `nn.Linear`, and
a gated MLP (`gate_proj`, `up_proj`, `down_proj`, `act_fn`). Each gets its own forward that checks in every call whether
the fast computation applies (one plain adapter, no dropout, no hooks, nothing else trained), and otherwise calls the
original forward. Generation uses them too, so that training and generation agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from preftune.logps.layers.gated_mlp import gated_mlp, gated_product
from preftune.logps.layers.projection import Projection, adapted_linear

_plain: ContextVar[bool] = ContextVar("preftune_plain_layers", default=False)


@contextmanager
def plain_layers() -> Iterator[None]:
    """Within this context, every layer uses its library's forward; for comparisons, not around a checkpointed
    forward.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def quicken(model: nn.Module) -> int:
    """Gives all supported layers their fast forward. Idempotent.

    An MLP is changed only if its own forward uses only its parts, and gives the same result on random numbers.

    Returns: the number of modules that were changed.
    """
    changed = 0
    compiled: set[nn.Module] = set()
    for module in model.modules():
        if module._compiled_call_impl is not None:
            compiled.update(module.modules())
        if module in compiled or "forward" in vars(module):  # or patched by another library, or ours already
            continue
        if _is_lora_linear(module):
            module.forward = MethodType(_adapted_linear_forward, module)
            changed += 1
        elif _is_gated_mlp(module):
            module.forward = MethodType(_gated_mlp_forward, module)
            changed += 1
    return changed


def _adapted_linear_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    projection = None if args or kwargs or _plain.get() else _projection(self)
    if projection is None:
        original: Tensor = type(self).forward(self, x, *args, **kwargs)
        return original
    return adapted_linear(x, projection)


def _gated_mlp_forward(self: Any, x: Tensor) -> Tensor:
    layers = (self.gate_proj, self.up_proj, self.down_proj)
    if _plain.get() or has_hooks(self.act_fn):
        original: Tensor = type(self).forward(self, x)
        return original
    parts = [None if has_hooks(layer) else _projection(layer) for layer in layers]
    if any(part is None for part in parts):
        result: Tensor = self.down_proj(gated_product(self.gate_proj(x), self.up_proj(x)))
        return result
    gate, up, down = parts
    return gated_mlp(x, gate, up, down)  # type: ignore[arg-type]


for _function in (_adapted_linear_forward, _gated_mlp_forward):
    _function.__name__ = "forward"  # so that a pickled module finds its own


def _projection(layer: Any) -> Projection | None:
    """The tensors of a frozen linear layer with at most one plain adapter; None for anything else."""
    if type(layer) is nn.Linear:
        return None if _trains(layer) else Projection(layer.weight, layer.bias)
    if not _is_lora_linear(layer):
        return None
    base = layer.base_layer
    if _trains(base) or has_hooks(base) or "forward" in vars(base):
        return None
    plain = Projection(base.weight, base.bias)
    if layer.disable_adapters or layer.merged:
        return plain if not (layer.disable_adapters and layer.merged) else None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active:
        return plain
    if len(active) > 1 or active[0] in layer.lora_variant:
        return None
    (name,) = active
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if type(a) is not nn.Linear or type(b) is not nn.Linear or a.bias is not None or b.bias is not None:
        return None
    if any(map(has_hooks, (a, b, dropout))) or (layer.training and getattr(dropout, "p", 0.0) > 0):
        return None
    return Projection(base.weight, base.bias, a.weight, b.weight, float(layer.scaling[name]))


def _is_lora_linear(module: Any) -> bool:
    return (
        hasattr(module, "lora_A")
        and hasattr(module, "lora_variant")
        and type(module).__name__ == "Linear"
        and type(getattr(module, "base_layer", None)) is nn.Linear
    )


def _is_gated_mlp(module: Any) -> bool:
    """Whether a module is a gated MLP, by its parts and by the result of its own forward on random numbers."""
    parts = ("gate_proj", "up_proj", "down_proj")
    if {name for name, _ in module.named_children()} != {*parts, "act_fn"}:
        return False
    if not isinstance(module.act_fn, nn.SiLU) and type(module.act_fn).__name__ not in ("SiLUActivation", "SiLU"):
        return False
    layers = [getattr(module, name) for name in parts]
    if any(type(getattr(layer, "base_layer", layer)) is not nn.Linear for layer in layers):
        return False  # quantised, or something else
    code: Any = getattr(type(module).forward, "__code__", None)
    if code is None or code.co_argcount != 2 or set(code.co_names) != {*parts, "act_fn"}:
        return False  # it does more than the formula: a clamp that a trial need not meet, a factor, another argument
    return _trial(module, _gated_mlp_forward, width=layers[0].in_features, like=layers[0].weight)


def _trial(module: nn.Module, forward: Any, *, width: int, like: Tensor) -> bool:
    """Whether `forward` gives the same result as the module's own forward on random numbers, up to rounding."""
    if like.device.type == "meta":
        return False
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    with torch.no_grad():
        theirs, ours = type(module).forward(module, x), forward(module, x)
    scale = theirs.abs().max()
    rounding = 16 * torch.finfo(torch.float32 if like.dtype.itemsize > 4 else like.dtype).eps
    return bool(torch.isfinite(scale)) and bool((theirs - ours).abs().max() <= rounding * scale)


def _trains(layer: nn.Linear) -> bool:
    return layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad)


def has_hooks(module: nn.Module) -> bool:
    """Whether this module has hooks, which would not be called by a replaced computation."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
