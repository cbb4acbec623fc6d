"""Bytes that the engine keeps of a micro-batch for the backward pass, and what it needs for a moment.

R tokens of the packed row, T scored ones, D width of the model, A and K widths of all query and key heads, F inside
of the MLP, r sum of the adapters' ranks in a layer; c bytes of a number in matrix products, s bytes of one in the
stream of hidden states. Of each layer are kept (docs/plan.md has the table):

    norms       R (4 D + 4) each: the input in float32, and its scale; R s D more where their weights are trained
    inputs      R c D for q, k, v together and for gate, up together. With autocast over float32 weights (full
                fine-tuning in half precision) each of the five products keeps a copy of its own
    attention   R c (2 A + 2 K): q, k, v and the output
    MLP         R c 2 F with a frozen MLP: gate and up. R c 3 F where it is trained, R c 4 F where it is quantised
    adapters    R c r

`tests/plan/test_activations.py` counts the saved tensors of real models; the numbers agree to the byte.
"""

from __future__ import annotations

from preftune.logps.head import chunk_for, cpu_chunk
from preftune.plan.settings import Settings
from preftune.plan.shape import ModelShape
from preftune.plan.workload import MicroBatch


def stream_bytes(shape: ModelShape, settings: Settings) -> int:
    """s: the hidden states are in the dtype of the weights that are added to them."""
    return 4 if shape.full else settings.frozen


def layer_bytes(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """What one layer keeps for the backward pass."""
    c, s, rows = settings.compute, stream_bytes(shape, settings), batch.tokens
    per_token = float(shape.norms * (4 * shape.width + 4))
    if shape.norms_trained:
        per_token += shape.norms * s * shape.width
    per_token += _inputs(shape, settings) + _mlp(shape, settings) + shape.narrow * c
    if settings.dropout and not shape.full:
        per_token += shape.adapted_inputs * (c + _mask_bytes(settings))
    if shape.has_head_norms:
        heads = (shape.query_width + shape.key_width) / shape.head_size
        per_token += 4 * (shape.query_width + shape.key_width) + 4 * heads
        per_token += c * (shape.query_width + shape.key_width) * shape.norms_trained
    return rows * per_token + _attention(shape, settings, batch)


def _mask_bytes(settings: Settings) -> int:
    """Of a number that dropout keeps or not: a boolean, on a CPU a float32."""
    return 1 if settings.device.kind == "cuda" else 4


def _inputs(shape: ModelShape, settings: Settings) -> float:
    c = settings.compute
    if shape.full and c < 4:
        return 5.0 * c * shape.width
    return 0.0 if settings.dropout and not shape.full else 2.0 * c * shape.width


def _mlp(shape: ModelShape, settings: Settings) -> float:
    if settings.bits is not None or not shape.fused_mlp:
        vectors = 4
    else:
        vectors = 3 if shape.full else 2
    return float(vectors * settings.compute * shape.inner)


def _attention(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """q, k, v and the output, as the kernel of the device keeps them."""
    c, rows, wide = settings.compute, batch.tokens, shape.query_width
    keys = wide if settings.repeats_keys else shape.key_width
    lse = 4.0 * shape.heads * rows
    if settings.kernel == "blocked":
        return float(rows * c * (2 * wide + 2 * shape.key_width))
    if settings.kernel == "flash":
        return rows * c * 2 * wide + batch.keys * c * 2 * keys + lse
    # segment by segment: outputs once as they come and once together; keys of further completions gathered
    gathered = batch.keys if settings.repeats_keys else rows + batch.further_keys
    return rows * c * 3 * wide + gathered * c * 2 * keys + lse + batch.masked * c


def rest_bytes(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """What is kept outside the layers: the last norm, rope, the head, and half-precision copies of trained weights."""
    c, s, rows, width = settings.compute, stream_bytes(shape, settings), batch.tokens, shape.width
    kept = rows * (4.0 * width + 4) + 2 * rows * shape.head_size * s
    if shape.norms_trained:
        kept += rows * s * width
    if shape.full:
        kept += 8 * rows  # ids, for the embedding
        if c < 4:  # with checkpointing, those of the layers go when their forward pass ends
            kept += c * (shape.head + (0 if settings.checkpointing else shape.linear))
        elif shape.head:
            kept += rows * s * width  # the last hidden states, which the head holds a part of
    elif c < 4 and not settings.checkpointing:
        kept += c * shape.adapter
    if shape.head:
        kept += batch.scored * (width * (s if shape.full else c) + 8) + 8 * batch.scored * shape.full
    return kept


def kept_bytes(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """Everything kept at the end of the forward pass."""
    rest = rest_bytes(shape, settings, batch)
    if settings.checkpointing:
        return shape.layers * batch.tokens * stream_bytes(shape, settings) * shape.width + rest
    first = 0.0
    if not shape.full:  # what is computed of frozen embeddings needs no gradient
        first = batch.tokens * (4.0 * shape.width + 4 + 3 * shape.width * _mask_bytes(settings) * settings.dropout)
    return shape.layers * layer_bytes(shape, settings, batch) - first + rest


def working_bytes(shape: ModelShape, settings: Settings, batch: MicroBatch) -> float:
    """What the backward pass of a layer needs besides: with checkpointing the layer itself, once more."""
    c, s, rows = settings.compute, stream_bytes(shape, settings), batch.tokens
    inner = (4 if settings.device.kind == "cuda" else 2) + (1 if shape.full else 0)
    work = rows * (inner * c * shape.inner + 3.0 * s * shape.width)
    if settings.bits is not None:
        work += settings.compute * shape.width * shape.inner  # a weight, unpacked
    if not settings.checkpointing:
        return work
    casts = settings.compute * shape.largest_layer if shape.full and c < 4 else 0
    return work + casts + layer_bytes(shape, settings, batch)


def logits_bytes(shape: ModelShape, settings: Settings, scored: int) -> float:
    """A chunk of logits: as they are multiplied, and in float32."""
    if not shape.head:
        return 0.0
    device, vocabulary = settings.device, shape.vocabulary
    if device.kind == "cpu":
        chunk = cpu_chunk(vocabulary)
    else:
        chunk = chunk_for(vocabulary, total_bytes=device.memory, free_bytes=device.memory)
    size = min(chunk, scored) * vocabulary
    return size * (4.0 + (settings.compute if settings.compute < 4 else 0))


def check_bytes(shape: ModelShape, settings: Settings, longest: int) -> float:
    """The check before the first step: whole logits of the longest sequence, and their logarithms."""
    if not shape.head:
        return 0.0
    return longest * shape.vocabulary * (8.0 + (settings.compute if settings.compute < 4 else 0))
