"""What to say when the device ran out of memory: the cures that apply to this configuration, best first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from preftune.errors import OutOfMemoryError
from preftune.training.assemble import is_quantized
from preftune.types import PackedBatch

SizeField = Literal["per_device_train_batch_size", "per_device_eval_batch_size", "precompute_ref_batch_size"]


@contextmanager
def explained(trainer: Any, batch: PackedBatch, *, size: SizeField = "per_device_train_batch_size") -> Iterator[None]:
    """Turn running out of memory on `batch` into an `OutOfMemoryError` that names the cures.

    Args:
        trainer: whose configuration and model decide which cures apply.
        size: the field that decided how large the batch is.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        training = size == "per_device_train_batch_size"
        cures = _training_cures(trainer, batch) if training else _scoring_cures(batch, size)
        if not is_quantized(trainer.model):
            cures.append("load_in_4bit=True with LoRA (weights in half a byte a parameter instead of 2 or 4)")
        longest = max(len(g.prompt_ids) + max(len(c) for c in g.completions) for g in batch.groups)
        cures.append(f"max_length below {longest}, the longest sequence of this batch (what is cut is reported)")
        raise OutOfMemoryError(
            f"the device ran out of memory on a batch of {batch.pairs} pairs, {batch.input_ids.shape[1]:,} tokens. "
            f"In order: {'; '.join(cures)}."
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class of its own; a CPU's allocator and other backends only have words."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in words or "out of memory" in words


def _training_cures(trainer: Any, batch: PackedBatch) -> list[str]:
    args, cures = trainer.args, []
    size = args.per_device_train_batch_size
    if len(batch.groups) > 1:
        smaller = max(d for d in range(1, size // 2 + 1) if size % d == 0)
        steps = args.gradient_accumulation_steps * size // smaller
        cures.append(
            f"per_device_train_batch_size={smaller} with gradient_accumulation_steps={steps} (fewer activations at a "
            "time, the same update)"
        )
    if not args.activation_checkpointing:
        cures.append("gradient_checkpointing=True (keeps one activation per layer, about a third more time)")
    if trainer.full:
        cures.append(
            "--use_peft or peft_config=LoraConfig(target_modules='all-linear') (no gradients and optimiser state for "
            "the whole model: about 12 bytes a parameter less)"
        )
    return cures


def _scoring_cures(batch: PackedBatch, size: SizeField) -> list[str]:
    """Nothing is kept for a backward pass here, so only the size of the batch matters."""
    return [f"{size}={len(batch.groups) // 2} (the numbers do not change)"] if len(batch.groups) > 1 else []
