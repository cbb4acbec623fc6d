"""Tensors that are divided among ranks (`DTensor`): the whole of them, and this rank's part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. All ranks must call it for the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part, which shares its memory with the tensor; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, divided as another one is; without communication."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    mesh = other.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, other.placements, src_data_rank=None)


def whole_weights(model: nn.Module, *, keep: bool, wanted: Collection[str] | None = None) -> dict[str, Any]:
    """The state dict with whole tensors in main memory. Tied weights are one tensor, as in the model.

    Args:
        keep: whether this rank needs the result; the others take part and get an empty dict.
        wanted: the names that are gathered, the same on all ranks; None for all.
    """
    owners = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    gathered: dict[object, Tensor] = {}
    names: dict[str, object] = {}
    for name, tensor in model.state_dict().items():
        if wanted is None or name in wanted:
            names[name] = owners.get(name, name)
            if names[name] not in gathered:
                together = whole(tensor)
                gathered[names[name]] = together.cpu() if keep else torch.empty(0)
    return {name: gathered[owner] for name, owner in names.items()} if keep else {}


def whole_state(state: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """The state dict of an optimiser with whole tensors in main memory; see `whole_weights`."""
    found: dict[Any, dict[str, Any]] = {}
    for index, values in state["state"].items():
        parts = {name: whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        if keep:
            found[index] = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in parts.items()}
    return {"state": found, "param_groups": state["param_groups"]}


def divided_state(state: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """The inverse of `whole_state`: the values that have a parameter's shape are divided as it is.

    Args:
        parameters: those of the optimiser, in its order.
    """
    divided = {
        index: {
            name: like(v, parameters[index]) if isinstance(v, Tensor) and v.shape == parameters[index].shape else v
            for name, v in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": divided}
