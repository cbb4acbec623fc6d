"""What to say when the device ran out of memory."""

from __future__ import annotations

from typing import Any

from preftune.errors import OutOfMemoryError
from preftune.types import PackedBatch


def memory_cures(args: Any, batch: PackedBatch, *, full: bool) -> OutOfMemoryError:
    """The error for a micro-batch that did not fit, with the cures that apply to this configuration, best first."""
    tokens, pairs = batch.input_ids.shape[1], batch.pairs
    cures = []
    if pairs > 1:
        half = max(1, args.per_device_train_batch_size // 2)
        steps = args.gradient_accumulation_steps * args.per_device_train_batch_size // half
        cures.append(
            f"per_device_train_batch_size={half} with gradient_accumulation_steps={steps} (half the activations, the "
            "same update)"
        )
    if not args.activation_checkpointing:
        cures.append("gradient_checkpointing=True (keeps one activation per layer, about a third more time)")
    if full:
        cures.append(
            "--use_peft or peft_config=LoraConfig(target_modules='all-linear') (no gradients and optimiser state for "
            "the whole model: about 12 bytes a parameter less)"
        )
    cures.append("load_in_4bit=True with LoRA (weights in half a byte a parameter instead of 2 or 4)")
    longest = max(len(g.prompt_ids) + max(len(c) for c in g.completions) for g in batch.groups)
    cures.append(f"max_length below {longest}, the longest sequence of this batch (what is cut is reported)")
    return OutOfMemoryError(
        f"the device ran out of memory on a micro-batch of {pairs} pairs, {tokens:,} tokens. In order: "
        + "; ".join(cures)
        + "."
    )
