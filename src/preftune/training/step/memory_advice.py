"""The error when a single pair does not fit: the fixes that this run does not use yet, best first, and the memory that
each would save. Activations are estimated with the formula of plans, if the model's config gives the sizes of its
layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from preftune.errors import ModelError, OutOfMemoryError
from preftune.models.four_bit import is_quantized
from preftune.plan.activations import kept_bytes
from preftune.plan.devices import this_card, this_cpu
from preftune.plan.settings import Settings
from preftune.plan.shape import shape_of
from preftune.plan.workload import MicroBatch, RowLengths
from preftune.training.protocol import TrainerView
from preftune.types import TokenizedGroup

_TRAINED_BYTES = 4 + 8
"""Bytes of a trained parameter's gradient and of AdamW's two moments, in float32."""


@dataclass(frozen=True, slots=True)
class Savings:
    """Bytes that each fix would save; None where it is unknown."""

    checkpointing: float | None
    adapter: float
    four_bit: float
    half_length: float | None
    half_model: float


def out_of_memory_error(trainer: TrainerView, group: TokenizedGroup | None, *, training: bool) -> OutOfMemoryError:
    """The error, with the fixes in order.

    Args:
        trainer: its configuration and model decide which fixes apply.
        group: the group that cannot be split; None where no batch was being computed (the optimiser's state).
        training: whether activations were kept for a backward pass.
    """
    saves = savings(trainer, group, training=training)
    fixes, what = [], "pair" if group is not None and group.pairs else "row"
    if training and group is not None and not trainer.args.activation_checkpointing:
        how = "keeps one activation per layer, about a quarter more time"
        fixes.append(f"gradient_checkpointing=True ({how}{_about(saves.checkpointing)})")
    if training and trainer.full:
        how = "no gradients and optimiser state for the whole model"
        fixes.append(
            f"--use_peft or peft_config=LoraConfig(target_modules='all-linear') ({how}{_about(saves.adapter)})"
        )
    if not is_quantized(trainer.model):
        how = "weights in half a byte a parameter"
        fixes.append(f"load_in_4bit=True with LoRA ({how}{_about(saves.four_bit)})")
    if group is not None:
        longest = max(len(group.prompt_ids) + len(completion) for completion in group.completions)
        half = "" if saves.half_length is None else f"; half of it{_about(saves.half_length, '')}"
        fixes.append(f"max_length below {longest} (the longest sequence of this {what}; cuts are reported{half})")
    fixes.append(f"a smaller model (one of half the size{_about(saves.half_model, '')})")
    if group is None:
        return OutOfMemoryError(
            "the device ran out of memory outside of a batch: weights, gradients and the optimiser's state fill it. "
            f"In order: {'; '.join(fixes)}."
        )
    return OutOfMemoryError(
        f"the device ran out of memory on a single {what} of {trainer.cost(group):,} tokens (row {group.id or '?'}). "
        f"In order: {'; '.join(fixes)}."
    )


def savings(trainer: TrainerView, group: TokenizedGroup | None, *, training: bool) -> Savings:
    """Estimates for a group that is computed alone; without activations for None."""
    model = trainer.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    state = sum(p.numel() for p in model.parameters() if p.requires_grad) * _TRAINED_BYTES if training else 0
    everything, inputs = _kept(trainer, group) if training else (None, None)
    kept = inputs if trainer.args.activation_checkpointing else everything
    linear = [p for p in _linear_weights(model) if p.is_floating_point()]
    return Savings(
        checkpointing=None if everything is None or inputs is None else everything - inputs,
        adapter=state,
        four_bit=sum(p.numel() * (p.element_size() - 0.5) for p in linear) + (state if trainer.full else 0),
        half_length=None if kept is None else kept / 2,
        half_model=(weights + state + (kept or 0)) / 2,
    )


def _linear_weights(model: Any) -> list[Tensor]:
    """The weights that 4-bit loading stores in 4 bits: those of linear layers, except the head's and LoRA's."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    ]


def _kept(trainer: TrainerView, group: TokenizedGroup | None) -> tuple[float | None, float | None]:
    """Bytes that a group keeps for the backward pass: all activations, and with checkpointing one input per layer.
    None where the config does not give the sizes of the layers.
    """
    if group is None:
        return 0.0, 0.0
    try:
        shape = shape_of(trainer.model)
    except ModelError:
        return None, None
    settings = Settings(
        command=trainer.method,
        device=this_card() if trainer.model.device.type == "cuda" else this_cpu(),
        precision=trainer.precision,
        checkpointing=False,
        reference="none",
        bits=shape.bits,
        dropout=any("lora_dropout" in name and getattr(m, "p", 0) for name, m in trainer.model.named_modules()),
    )
    batch = MicroBatch.of([RowLengths.of(group)])
    repeated = trainer.cost(group) / group.tokens  # above 1 where prompts are not shared
    everything, inputs = (
        repeated * kept_bytes(shape, replace(settings, checkpointing=value), batch) for value in (False, True)
    )
    return everything, inputs


def _about(saved: float | None, comma: str = ",") -> str:
    """The end of a fix, ', saves about 3 GB'; empty for None."""
    if saved is None:
        return ""
    if saved >= 0.95e9:
        return f"{comma} saves about {saved / 1e9:.2g} GB"
    return f"{comma} saves about {max(1, round(saved / 1e6))} MB"
