"""`SFTConfig`: TrainingArguments with TRL's names for supervised fine-tuning, validated when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from preftune.errors import ConfigError
from preftune.training.config.base import PackedConfig
from preftune.training.config.options import option
from preftune.training.config.refused import REFUSED, Refusal

_ALWAYS_PACKED = (
    "rows are always packed, without padding and without attention between rows, and the batch size counts rows; "
    "raise per_device_train_batch_size, and limit the memory with max_tokens_per_batch"
)

SFT_REFUSED: Mapping[str, Refusal] = {
    **{name: refusal for name, refusal in REFUSED.items() if name != "neftune_noise_alpha"},
    "packing": Refusal((False,), f"{_ALWAYS_PACKED}; remove packing"),
    "eval_packing": Refusal((None, False), f"{_ALWAYS_PACKED}; remove eval_packing"),
    "packing_strategy": Refusal(("bfd",), "it belongs to packing; remove it"),
    "loss_type": Refusal(("nll",), "one loss, the mean over trained tokens; remove loss_type"),
    "dataset_kwargs": Refusal((None, {}), "its successors are --format and --columns (load_demonstrations); remove it"),
    "dataset_num_proc": Refusal((None, 1), "the tokenizer has its own threads; remove it"),
    "shuffle_dataset": Refusal((False,), "every epoch is shuffled already; remove it"),
    "label_smoothing_factor": Refusal((0, 0.0), "the loss is the plain mean over trained tokens; remove it"),
    "average_tokens_across_devices": Refusal((True,), "the mean is over the tokens of all devices; remove it"),
    "include_for_metrics": Refusal(([], None), "compute_metrics gets the numbers of every token; remove it"),
    "eval_do_concat_batches": Refusal((True,), "compute_metrics gets the numbers of all tokens at once; remove it"),
    "bf16_full_eval": Refusal((False,), "training and evaluation are computed in one precision; remove it"),
    "fp16_full_eval": Refusal((False,), "training and evaluation are computed in one precision; remove it"),
    "batch_eval_metrics": Refusal((False,), "evaluation keeps two numbers per token, nothing to batch; remove it"),
    "label_names": Refusal((None,), "packed batches have no label columns; remove it"),
}


@dataclass
class SFTConfig(PackedConfig):
    """Configuration of `SFTTrainer`: every field of `transformers.TrainingArguments`, and those below.

    Names follow TRL 1.16, so a TRL script or YAML runs with the import changed. Defaults that differ from TRL's:
    `assistant_only_loss` is unset, which means the assistant's turns in conversations, where TRL trains the users'
    turns too; `learning_rate` is 2e-5 for full fine-tuning, as TRL's, and 2e-4 for adapters."""

    full_learning_rate: ClassVar[float] = 2e-5
    adapter_learning_rate: ClassVar[float] = 2e-4
    trls_rate: ClassVar[float] = 2e-5
    refused: ClassVar[Mapping[str, Refusal]] = SFT_REFUSED

    # --- the loss ---
    completion_only_loss: bool | None = option(
        None, "Train only the text after the prompt. Default: if the data have prompts. False: everything."
    )
    assistant_only_loss: bool | None = option(
        None, "In conversations, train only the assistant's turns. Default: yes. False: everything."
    )

    # --- the data ---
    dataset_text_field: str = option("text", "Column of plain texts.")
    chat_template_path: str | None = option(
        None,
        "A Jinja file, or a model whose chat template is taken over. Default: the tokenizer's own; without one, "
        "a plain Human/Assistant dialogue, which is saved with the model.",
    )
    eos_token: str | None = option(None, "Token that ends an answer. Default: the tokenizer's.")

    # --- the model ---
    disable_dropout: bool = option(False, "Train without dropout, LoRA's included.")

    # --- fields of TRL's that preftune refuses unless they have no effect ---
    packing: bool = option(False, "Only False: rows are always packed, without attention between them.")
    packing_strategy: str = option("bfd", "Only the default is accepted.")
    eval_packing: bool | None = option(None, "Only False or unset.")
    padding_free: bool = option(False, "Accepted without effect: preftune never pads.")
    truncation_mode: str = option("keep_start", "Only keep_start.", choices=["keep_start", "keep_end"])
    loss_type: str = option("nll", "Only nll.")
    dataset_kwargs: dict[str, Any] | str | None = option(None, "Only unset.")
    shuffle_dataset: bool = option(False, "Only False: every epoch is shuffled.")
    router_aux_loss_coef: float | None = option(None, "Only 0 or unset: no auxiliary router loss is added.")

    def _validate(self) -> None:
        super()._validate()
        alpha = self.neftune_noise_alpha
        if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
            raise ConfigError(f"neftune_noise_alpha={alpha} must be a finite number above 0 (5 is usual), or unset.")
