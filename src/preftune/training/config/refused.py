"""Options that exist in TRL or transformers and that preftune does not honour: refused with the reason, from a table.

An option is honoured or refused, never ignored. A value listed as harmless has no effect, so it is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preftune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a field's value cannot be honoured, and which values have no effect and are therefore accepted."""

    harmless: tuple[Any, ...]
    reason: str


_NOT_YET = "preftune does not have it yet"

REFUSED: dict[str, Refusal] = {
    # --- TRL ---
    "router_aux_loss_coef": Refusal((None, 0, 0.0), "no auxiliary router loss is added; remove router_aux_loss_coef"),
    "truncation_mode": Refusal(
        ("keep_start",), "only completions are cut, at their end; shorten prompts with max_prompt_length instead"
    ),
    "max_completion_length": Refusal((None,), "its successor is max_length, together with max_prompt_length"),
    "pad_to_multiple_of": Refusal((None, "auto", "none", 1), "preftune packs sequences and never pads; remove it"),
    "pad_token": Refusal((None,), "preftune never pads; set tokenizer.pad_token if generation needs one"),
    "activation_offloading": Refusal((False,), "its successor is gradient_checkpointing=True"),
    "reference_free": Refusal((False, None), "DPO without a reference is a different loss; remove reference_free"),
    "generate_during_eval": Refusal((False,), "its successor is eval_judge, which keeps the answers; remove it"),
    # --- transformers ---
    "label_smoothing_factor": Refusal((0, 0.0), "it smooths token labels; its successor here is label_smoothing"),
    "use_liger_kernel": Refusal((False,), "it would replace the forward that scores completions; preftune's head is "
                                "chunked already; remove it"),
    "liger_kernel_config": Refusal((None,), "it belongs to use_liger_kernel; remove it"),
    "auto_find_batch_size": Refusal((False,),
                                              "no option is needed: when memory runs out, a step is repeated in "
                                              "smaller micro-batches; remove it"),
    "logging_nan_inf_filter": Refusal((False,), "it hides NaN losses, on which preftune stops; remove it"),
    "bf16_full_eval": Refusal((False,), "policy and reference must be computed in one precision; remove it"),
    "fp16_full_eval": Refusal((False,), "policy and reference must be computed in one precision; remove it"),
    "batch_eval_metrics": Refusal((False,), "evaluation keeps two numbers per pair, nothing to batch; remove it"),
    "average_tokens_across_devices": Refusal((True,), "the mean is always over the pairs of all devices; remove it"),
    "label_names": Refusal((None,), "preference batches have no label columns; remove it"),
    "length_column_name": Refusal(("length",), "it belongs to grouping by length; remove it"),
    "include_for_metrics": Refusal(([], None), "compute_metrics gets the rewards of every pair; remove it"),
    "train_sampling_strategy": Refusal(
        ("random", "sequential"), "sequences are packed without padding, so grouping by length gains nothing"
    ),
    "eval_do_concat_batches": Refusal((True,), "compute_metrics gets the rewards of all pairs at once; remove it"),
    "eval_use_gather_object": Refusal((False,), "evaluation gathers numbers, not objects; remove it"),
    "ddp_broadcast_buffers": Refusal((None, False), "a language model's buffers do not change in training; remove it"),
    "ddp_static_graph": Refusal((None, False), "gradients are averaged after the backward pass, without "
                                "DistributedDataParallel's bookkeeping; remove it"),
    "neftune_noise_alpha": Refusal((None,), "it would affect the policy but not the reference; remove it"),
    "parallelism_config": Refusal((None,), f"tensor and context parallelism: {_NOT_YET}; remove it"),
}  # fmt: skip


def refuse_unsupported(config: Any, refused: Mapping[str, Refusal] = REFUSED) -> None:
    """Raises: ConfigError for the first field whose value preftune would not honour.

    Args:
        refused: the table of the trainer.
    """
    for name, refusal in refused.items():
        if not hasattr(config, name):
            continue
        value = getattr(config, name)
        value = getattr(value, "value", value)  # enums
        if not any(value is h or (type(value) is type(h) and value == h) or _same(value, h) for h in refusal.harmless):
            raise ConfigError(f"{name}={value!r} is not honoured: {refusal.reason}.")


def _same(value: Any, harmless: Any) -> bool:
    numbers = (int, float)
    return isinstance(value, numbers) and isinstance(harmless, numbers) and value == harmless
