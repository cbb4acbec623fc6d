"""Tensors that are divided among ranks (`DTensor`): the whole of them, and this rank's part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication


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


def whole_weights(model: nn.Module, *, keep: bool, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """The state dict with whole tensors in main memory. Tied weights are one tensor, as in the model.

    Args:
        keep: whether this rank needs the result; the others take part and get an empty dict.
        wanted: which names are gathered; the same on all ranks.
    """
    owners = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    gathered: dict[int, Tensor] = {}
    found: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if not wanted(name):
            continue
        owner = owners.get(name, id(tensor))
        if owner not in gathered:
            together = whole(tensor)
            gathered[owner] = together.cpu() if keep else torch.empty(0)
        if keep:
            found[name] = gathered[owner]
    return found


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


@contextmanager
def plain_tensors_are_whole() -> Iterator[None]:
    """Inside, a plain tensor that meets a divided one counts as the whole of it, the same on all ranks."""
    with implicit_replication():
        yield
