"""`torch.compile` where it is safe for a packed row: norms and gated MLPs, each compiled separately and shared by all
layers.

Attention and the layout are not compiled: the only value that changes from batch to batch is the length of the row,
which is symbolic. Compiling whole decoder layers breaks the graph at attention, and under activation checkpointing,
where a graph must not break, silently compiles nothing. The compiled parts work under checkpointing, serve both policy
and reference, and contain nearly all small operations of a layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from preftune.logps.layers import fast_layers

# With and without gradients, adapters on and off, queries and keys, one token or many, autocast: a norm may well come
# to more than torch's 8. What hits even this limit raises (`fullgraph`), and never goes on uncompiled in silence.
_RECOMPILE_LIMIT = 32


def compile_layers(model: nn.Module, *, backend: str = "inductor", mode: str | None = None) -> int:
    """Compiles the norms and MLPs of a model in place; results stay the same up to rounding. Idempotent.

    Mixtures of experts and quantised layers are not compiled.

    Args:
        backend, mode: as in `torch.compile`.
    Returns: how many modules are compiled when first called.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
    pieces = list(_pieces(model))
    for piece in pieces:
        _own_forward_again(piece)
        piece.compile(dynamic=True, fullgraph=True, backend=backend, mode=mode)
    return len(pieces)


def _pieces(model: nn.Module) -> Iterator[nn.Module]:
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or module._compiled_call_impl is not None or "expert" in name:
            continue
        if (_is_norm(module) or _is_mlp(module)) and not any(map(_unfit, module.modules())):
            inside.update(module.modules())
            yield module


def _is_norm(module: nn.Module) -> bool:
    """Whether a norm consists of single operations; PyTorch's own norms are already one kernel."""
    return type(module).__name__.endswith("Norm") and not type(module).__module__.startswith("torch.")


def _is_mlp(module: nn.Module) -> bool:
    inner = " ".join(name for name, _ in module.named_modules())
    return type(module).__name__.endswith("MLP") and "expert" not in inner and "router" not in inner


def _unfit(module: nn.Module) -> bool:
    return fast_layers.has_hooks(module) or any(not p.dtype.is_floating_point for p in module.parameters(recurse=False))


def _own_forward_again(piece: nn.Module) -> None:
    """Removes the forwards of `fast_layers`, whose decisions per call cannot be compiled."""
    for module in piece.modules():
        function = getattr(vars(module).get("forward"), "__func__", None)
        if getattr(function, "__module__", None) == fast_layers.__name__:
            del module.forward
