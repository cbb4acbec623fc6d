"""How a training computes, as far as memory and time depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from preftune.errors import ConfigError
from preftune.logps.attention.cuda import flash_groups_heads
from preftune.models.precision import Precision, decide_precision
from preftune.plan.devices import Device

ReferenceKind = Literal["none", "adapter off", "pass", "copy"]

_STATE_BYTES = {
    "adamw": 8.0,
    "adam": 8.0,
    "adafactor": 0.1,
    "sgd": 0.0,
    "lion": 4.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
    "8bit": 2.1,
    "4bit": 1.1,
}
"""Bytes of an optimiser's state for a trained parameter, by a part of its name; the last match counts."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One training on one kind of device."""

    command: str
    device: Device
    precision: Precision
    checkpointing: bool
    reference: ReferenceKind
    optimizer: str = "adamw_torch_fused"
    bits: int | None = None
    """4 or 8 for a quantised base."""
    nested: bool = False
    dropout: bool = False
    """Whether the adapter trains with dropout."""
    gpus: int = 1
    nodes: int = 1
    fsdp: frozenset[str] = frozenset()
    divisible: bool = True
    """Whether the optimiser can update divided weights, and nothing is compiled."""

    @property
    def can_shard(self) -> bool:
        """Whether the training accepts `--fsdp`."""
        return self.bits is None and not self.precision.fp16 and self.divisible

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return self.precision.compute.itemsize

    @property
    def frozen(self) -> int:
        return self.precision.frozen.itemsize

    @property
    def sharded(self) -> bool:
        return bool(self.fsdp) and self.ranks > 1

    @property
    def shards(self) -> int:
        """Number of ranks that share one copy of weights, gradients and optimiser."""
        if not self.sharded:
            return 1
        return self.gpus if any("hybrid" in word for word in self.fsdp) and self.gpus > 1 else self.ranks

    @property
    def keeps_gathered(self) -> bool:
        """Whether weights stay whole between forward and backward."""
        return self.sharded and bool(self.fsdp & {"shard_grad_op", "hybrid_shard_zero2"})

    @property
    def offloads(self) -> bool:
        return self.sharded and "offload" in self.fsdp

    @property
    def state_bytes(self) -> float:
        """Bytes of the optimiser's state for a trained parameter."""
        return ([value for name, value in _STATE_BYTES.items() if name in self.optimizer] or [8.0])[-1]

    @property
    def kernel(self) -> Literal["blocked", "flash", "segments"]:
        """Which attention computes packed rows; see `logps/attention`."""
        if self.device.kind == "cpu":
            return "blocked" if self.compute >= 4 else "segments"
        return "flash" if self.device.flash and self.compute == 2 else "segments"

    @property
    def repeats_keys(self) -> bool:
        """Whether key heads are repeated for the query heads that share them."""
        return self.device.kind != "cpu" and (self.kernel == "segments" or not flash_groups_heads())


def precision_on(device: Device, *, bf16: bool | None, fp16: bool, model_dtype: torch.dtype) -> Precision:
    """The precision policy for a device that need not be in this machine; see `decide_precision`.

    Raises: ConfigError for what the training would refuse on the device.
    """
    if device.kind == "cpu":
        return decide_precision(bf16=bf16, fp16=fp16 or None, model_dtype=model_dtype)
    if fp16 or bf16 is False:  # the policy does not depend on the card
        return decide_precision(bf16=bf16, fp16=fp16, device="cuda")
    if bf16 and device.half != "bfloat16":
        raise ConfigError(f"bf16=True, but {device.name} has no bfloat16. Use fp16=True, or leave both unset.")
    half = torch.bfloat16 if device.half == "bfloat16" else torch.float16
    return Precision(half, half, half == torch.float16, device.name)
