"""Tensors that are divided among ranks (`DTensor`): the whole of them, and this rank's part."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def as_generated(model: Any) -> Iterator[None]:
    """A sharded model as `generate` needs it, without gradients: what is in none of its layers stays whole, because an
    adapter's `generate` calls the model inside of the one that gathers these weights. Layers gather themselves.

    All ranks must generate the same at the same time.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    sharded: Any = model
    token = torch.zeros(1, 1, dtype=torch.int64, device=sharded.get_input_embeddings().weight.device)
    hook = sharded.register_forward_hook(lambda *_: sharded.unshard())
    try:
        with torch.no_grad():
            sharded(input_ids=token)  # so that the hook gathers, after a forward pass as FSDP2 wants it first
            yield
    finally:
        hook.remove()
        sharded.reshard()


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


@contextmanager
def reads_whole_tensors(model: nn.Module) -> Iterator[None]:
    """Within this context, `load_state_dict` divides whole tensors as the weights are that they replace: torch cannot
    copy one into a weight whose rows the ranks do not share equally.
    """

    def divide(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, weight in module.named_parameters(recurse=False):
            given = state.get(prefix + name)
            if isinstance(given, Tensor) and given.shape == weight.shape:
                state[prefix + name] = like(given, weight)

    sharded = [one for one in model.modules() if any(isinstance(w, DTensor) for w in one.parameters(recurse=False))]
    hooks = [module.register_load_state_dict_pre_hook(divide) for module in sharded]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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


def distinct_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with one name for weights that are tied; the tensors are those of the model."""
    owners = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    found: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault(owners.get(name, name), (name, tensor))
    return dict(found.values())


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, each rank its own part. All ranks must call it, with the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(dict(tensors), storage_writer=writer)


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reads what `write_parts` wrote into tensors, which may be divided otherwise, or whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def flat_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an optimiser's state dict by `index.name`, and the state dict without them."""
    tensors = {
        f"{i}.{n}": v for i, values in state["state"].items() for n, v in values.items() if isinstance(v, Tensor)
    }
    rest = {i: {n: v for n, v in values.items() if not isinstance(v, Tensor)} for i, values in state["state"].items()}
    return tensors, {**state, "state": rest}


def state_from_parts(folder: Path, rest: Mapping[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """The inverse of `flat_state` and `write_parts`: values of a parameter's shape are divided as it is."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, Tensor] = {}
    for key, facts in stored.items():
        assert isinstance(facts, TensorStorageMetadata)  # nothing else is written
        parameter, dtype = parameters[int(key.partition(".")[0])], facts.properties.dtype
        divided = facts.size == parameter.shape
        tensors[key] = torch.zeros_like(parameter, dtype=dtype) if divided else torch.zeros(facts.size, dtype=dtype)
    read_parts(folder, tensors)
    state = {index: dict(values) for index, values in rest["state"].items()}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = tensor
    return {**rest, "state": state}
