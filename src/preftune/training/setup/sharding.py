"""A model divided among the ranks with torch's FSDP2. It is divided after its engine was made, because the trial of the
fast layers needs whole weights.

Layers are gathered in the dtype in which they are stored, so that every rank computes what a single process would. If
they were gathered in bfloat16 (`MixedPrecisionPolicy`), embeddings and norms would round, by 0.3 nat in the margins of
a 135M model.

Each layer is an FSDP group. The rest of the model (embedding, last norm, head) is another, which stays whole from its
forward to its backward pass, because both need the head's weight.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from preftune.errors import ConfigError
from preftune.log import say
from preftune.models.four_bit import is_quantized
from preftune.training.config.base import PackedConfig
from preftune.training.config.sharding import Sharding, refusal


def check_sharding(model: nn.Module, args: PackedConfig) -> None:
    """Check that the model can be sharded in this run.

    Raises: ConfigError without other processes, or for an option that cannot be combined with sharding.
    """
    if args.world_size < 2 or not dist.is_initialized():
        raise ConfigError(
            f"fsdp={args.fsdp!r} divides a model among processes, but this is the only one. Start one for each "
            "device: torchrun --nproc_per_node N -m preftune ..., or leave fsdp out."
        )
    reason = refusal(
        quantised=is_quantized(model),
        fp16=bool(args.fp16),
        compiled=bool(args.torch_compile),
        optimiser=str(getattr(args.optim, "value", args.optim)),
    )
    if reason is not None:
        raise ConfigError(f"fsdp={args.fsdp!r} cannot be combined with {reason}.")


def shard_model(
    model: Any,
    sharding: Sharding,
    device: torch.device,
    *,
    called: Sequence[nn.Module] = (),
) -> None:
    """Divide a model's weights among all ranks, in place. Before, every rank must hold the same whole weights, on the
    CPU or on its device.

    Args:
        called: the parts of the model that are called if the model itself is not; empty for the model.
    Raises: ConfigError if no layers are found, or the number of ranks is not a multiple of `sharding.replicas`.
    """
    mesh = _mesh(sharding, device)
    received = {name: p.received_dtype for name, p in model.named_parameters() if hasattr(p, "received_dtype")}
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if sharding.cpu_offload else OffloadPolicy(),
    }
    for layer in layers_of(model, sharding.layer_classes):
        fully_shard(layer, reshard_after_forward=sharding.reshard_after_forward, **options)
        layer.register_forward_hook(_divide_again)
    for part in called or (model,):
        fully_shard(part, reshard_after_forward=False, **options)
        part.register_forward_hook(_divide_again)
    for name, parameter in model.named_parameters():  # sharding replaced the parameters
        if name in received:
            parameter.received_dtype = received[name]
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    say(sharding.describe(dist.get_world_size(), mesh.size(0) if mesh.ndim == 2 else 1))


def _divide_again(module: Any, inputs: Any, output: Any) -> None:
    """Divide the weights again after a forward pass without gradients, which no backward pass follows."""
    if not torch.is_grad_enabled():
        module.reshard()


def layers_of(model: Any, classes: Sequence[str] = ()) -> list[nn.Module]:
    """The modules that are sharded one by one: those of the named classes, by default the model's layers.

    Raises: ConfigError if the model has no such module.
    """
    names = set(classes) or set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found and not classes:
        count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
        lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count > 0)
        found = list(next(lists, []))
    if not found:
        held = sorted({type(module).__name__ for module in model.modules()})
        asked = f"of the class {', '.join(sorted(names))} " if names else ""
        raise ConfigError(
            f"the model has no layers {asked}to shard. Name one of its classes in fsdp_config="
            f"{{'transformer_layer_cls_to_wrap': ...}}: {', '.join(held)}."
        )
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in inner]


def _mesh(sharding: Sharding, device: torch.device) -> DeviceMesh:
    ranks = dist.get_world_size()
    if not sharding.hybrid:
        return init_device_mesh(device.type, (ranks,))
    replicas = sharding.replicas or ranks // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if replicas < 1 or ranks % replicas:
        raise ConfigError(
            f"fsdp_config={{'replicas': {replicas}}}: {ranks} ranks cannot be divided into them. Give a divisor of "
            f"{ranks}."
        )
    return init_device_mesh(device.type, (replicas, ranks // replicas), mesh_dim_names=("replicas", "shards"))


def take_from_first_rank(model: nn.Module, device: torch.device) -> None:
    """Copy all weights and buffers from rank 0, one at a time, because the other ranks may not have loaded them."""
    for tensor in (*model.parameters(), *model.buffers()):
        there = tensor.detach().to(device)
        dist.broadcast(there, src=0)
        tensor.data.copy_(there)
