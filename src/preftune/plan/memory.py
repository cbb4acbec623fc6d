"""Memory of one rank, line by line, at the moment of its peak."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from preftune.plan.activations import (
    check_bytes,
    kept_bytes,
    layer_bytes,
    logits_bytes,
    working_bytes,
)
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.workload import MicroBatch

PROCESS_BYTES = 0.56e9
"""Python with torch, transformers and preftune, before a model is loaded; measured on Linux."""
CONTEXT_BYTES, FRAGMENTS = 0.6e9, 0.03
"""Of a CUDA process: its context and libraries; and the share that the allocator's blocks waste. Assumed."""

_MAPPED = 32 * 2**20
"""Bytes from which glibc always gives a tensor its own pages; smaller ones come from a heap with holes."""
_HOLES = {"kept": 3.0, "freed": 6.0, "dropout": 17.0}
"""Bytes of such holes for a layer, a token and a number of two hidden states and the MLP's inside. It is what was left
over between the formula and the peak in eight trainings (docs/notes.md): most where a layer frees much (adapters,
checkpointing), least where nearly everything is kept (full fine-tuning).
"""

_PACKED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
_NESTED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits and a scale for 64 weights; the scale in 8 bits with one of its own for 256 scales."""


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of memory."""

    name: str
    bytes: float
    note: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What one rank needs."""

    lines: tuple[Line, ...]
    limit: int
    """Bytes that the device has."""
    host: float
    """Bytes in main memory: what `offload` moves there."""

    @property
    def total(self) -> float:
        return sum(line.bytes for line in self.lines)

    @property
    def fits(self) -> bool:
        return self.limit <= 0 or self.total <= self.limit

    def of(self, name: str) -> float:
        return sum(line.bytes for line in self.lines if line.name == name)


def memory_of(shape: ModelShape, settings: Settings, batch: MicroBatch, *, micro_batches: int) -> Memory:
    """All lines; they add up to the peak.

    Args:
        batch: the largest micro-batch.
        micro_batches: number in a step; with more than one, gradients of the first wait while the next is computed.
    """
    share = 1 / settings.shards
    host = 0.0
    weights, adapter = weight_bytes(shape, settings), 4.0 * shape.adapter
    gradients, state = 4.0 * shape.trainable, settings.state_bytes * shape.trainable
    copy = 4.0 * shape.trainable if settings.reference == "copy" else 0.0
    weights, adapter, gradients, state, copy = (share * n for n in (weights, adapter, gradients, state, copy))
    if settings.offloads:
        host = weights + adapter + gradients + state
        weights = adapter = gradients = state = 0.0
    kept, work = kept_bytes(shape, settings, batch), working_bytes(shape, settings, batch)
    logits = logits_bytes(shape, settings, batch.scored)
    lines = [
        Line("weights", weights, _weights_note(shape, settings)),
        Line("adapter", adapter, f"{parameters(shape.adapter)} parameters in float32" if shape.adapter else "none"),
        Line("gradients", gradients, "float32"),
        Line("optimiser", state, f"{settings.optimizer}, {settings.state_bytes:g} bytes a trained parameter"),
        Line("activations", kept + work, _activations_note(settings, batch)),
        Line("logits", logits, "a chunk of them at a time"),
        Line("reference", copy, _reference_note(settings)),
    ]
    if settings.sharded:
        lines.append(Line("gathered", _gathered(shape, settings), _gathered_note(settings)))
    others = weights + adapter + copy + sum(line.bytes for line in lines if line.name == "gathered")
    peak = others + _moment(shape, settings, batch, gradients=gradients, state=state, many=micro_batches > 1)
    apart = peak - sum(line.bytes for line in lines)
    if apart < 0:
        lines.append(Line("not together", apart, "gradients come while activations go"))
    elif apart > 0:
        lines.append(Line("first step", apart, "its check, beyond the rest"))
    if holes := _holes(shape, settings, batch):
        lines.append(Line("fragments", holes, "holes of the C library's heap, estimated"))
    lines.append(_system(settings, peak))
    return Memory(tuple(lines), settings.device.memory, host)


def parameters(count: int) -> str:
    """A number of parameters as people say it: 6.74B, 30.2M, 32,416."""
    if count >= 1e9:
        return f"{count / 1e9:.2f}B"
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count:,}"


def weight_bytes(shape: ModelShape, settings: Settings) -> float:
    """All weights but the adapter's."""
    if shape.full:
        return 4.0 * shape.stored
    if settings.bits is None:
        return float(settings.frozen * shape.stored)
    packed = _NESTED_BYTES if settings.bits == 4 and settings.nested else _PACKED_BYTES[settings.bits]
    return packed * shape.linear + settings.frozen * (shape.stored - shape.linear)


def _moment(
    shape: ModelShape, settings: Settings, batch: MicroBatch, *, gradients: float, state: float, many: bool
) -> float:
    """The most of what comes and goes: at the start of a backward pass, at its end, in the first step, or in the check
    before it.
    """
    kept, work = kept_bytes(shape, settings, batch), working_bytes(shape, settings, batch)
    logits = logits_bytes(shape, settings, batch.scored)
    head = 4.0 * shape.head / settings.shards if shape.full else 0.0  # its gradient comes first, when all is kept
    start = kept + max(work, logits) + (gradients if many else head) + state
    one_layer = 0.0 if settings.checkpointing else layer_bytes(shape, settings, batch)
    end = gradients + state + one_layer + work
    first = gradients + state + 4.0 * shape.largest_weight / settings.shards
    return max(start, end, first, check_bytes(shape, settings, batch.longest))


def _gathered(shape: ModelShape, settings: Settings) -> float:
    """Whole weights of the layer that computes and of the next one, and what is outside the layers, in the dtype in
    which they are stored; and the gradients that are about to be distributed.
    """
    layers = shape.layers if settings.keeps_gathered else 2
    trained = layers * shape.largest_layer_trainable + shape.root_trainable
    whole = layers * shape.largest_layer + shape.root
    gradients = 4.0 * (2 * shape.largest_layer_trainable + shape.root_trainable)
    return settings.frozen * (whole - trained) + 4.0 * trained + gradients


def _holes(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """What the heap of glibc loses between tensors on a CPU: `memalign` finds no room in a hole of the same size."""
    if settings.device.kind != "cpu" or not sys.platform.startswith("linux"):
        return 0.0
    tensors = [
        size for size in (shape.width, shape.width, shape.inner) if batch.tokens * size * settings.compute < _MAPPED
    ]
    kind = "kept" if shape.full and not settings.checkpointing else "dropout" if settings.dropout else "freed"
    return _HOLES[kind] * shape.layers * batch.tokens * sum(tensors)


def _system(settings: Settings, peak: float) -> Line:
    if settings.device.kind == "cpu":
        return Line("process", PROCESS_BYTES, "Python and its libraries")
    return Line("system", CONTEXT_BYTES + FRAGMENTS * peak, f"CUDA context, and {FRAGMENTS:.0%} for the allocator")


def _weights_note(shape: ModelShape, settings: Settings) -> str:
    size = f"{parameters(shape.stored)} parameters"
    if shape.full:
        return f"{size} in float32, all trained"
    dtype = str(settings.precision.frozen).removeprefix("torch.")
    return f"{size} in {dtype}" if settings.bits is None else f"{size}, linear layers in {settings.bits} bits"


def _activations_note(settings: Settings, batch: MicroBatch) -> str:
    kind = "one input a layer" if settings.checkpointing else "all of every layer"
    return f"{batch.tokens:,} tokens at a time, {kind}"


def _reference_note(settings: Settings) -> str:
    return {
        "none": "the loss has none",
        "adapter off": "the same model with its adapter off",
        "pass": "scores of all rows before the first step",
        "copy": "a frozen copy of the trained weights",
    }[settings.reference]


def _gathered_note(settings: Settings) -> str:
    if settings.keeps_gathered:
        return "all weights, whole during a step"
    return "two layers and what is outside them, whole"
