"""Axolotl's recipes: `rl`, `base_model`, `adapter`, `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preftune.cli.recipes import axolotl_data
from preftune.cli.recipes.carried import Carried, adapter, continued
from preftune.errors import RequestError

_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "ipo": ("dpo", {"loss_type": "ipo"}),
    "simpo": ("dpo", {"loss_type": "simpo"}),
    "orpo": ("dpo", {"loss_type": "orpo"}),
    "kto": ("kto", {}),
}
_DEFAULTS = {"micro_batch_size": 1, "num_epochs": 1.0, "sequence_len": 512, "lr_scheduler": "cosine"}
"""Axolotl's defaults, where preftune's differ."""
_WARMUP = 0.03
"""The share of the steps in which Axolotl's learning rate rises by default, up to 100 steps."""
_NAMES = {
    "base_model": "model_name_or_path",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "orpo_alpha": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "dataset_processes": "dataset_num_proc",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
    "lora_modules_to_save": "lora_modules_to_save",
    "lora_target_parameters": "lora_target_parameters",
    "revision_of_model": "model_revision",
    "wandb_name": "run_name",
}
_OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear")
_LOST = {
    "sample_packing": "Rows are always packed without padding.",
    "eval_sample_packing": "Rows are always packed without padding.",
    "pad_to_sequence_len": "preftune never pads.",
    "flash_attention": "The packed engine has its own attention.",
    "xformers_attention": "The packed engine has its own attention.",
    "sdp_attention": "It is the default.",
    "chat_template": "The model's own chat template is used.",
    "special_tokens": "The model's own special tokens are used.",
    "tokenizer_type": "The tokenizer is the model's own.",
    "tokenizer_config": "The tokenizer is the model's own.",
    "rl_adapter_ref_model": "The reference of an adapter is the adapter as it was received.",
    "model_type": "The class follows from the model's config.",
    "dataset_prepared_path": "Token ids are cached by content.",
    "wandb_project": "Set WANDB_PROJECT, and report_to: wandb.",
    "wandb_entity": "Set WANDB_ENTITY, and report_to: wandb.",
    "plugins": "preftune has no plugins.",
    "trl": "Options inside trl: are not read; write them at the top.",
    "tf32": "Set tf32 of TrainingArguments if the GPU supports it.",
    "evals_per_epoch": "Write eval_strategy and eval_steps.",
    "saves_per_epoch": "Checkpoints are written after each epoch and every ten minutes.",
}


def is_axolotl(values: Mapping[str, Any]) -> bool:
    """Whether a recipe is written for Axolotl."""
    return "base_model" in values and bool({"sequence_len", "micro_batch_size", "rl", "adapter"} & set(values))


def read(values: Mapping[str, Any]) -> Carried:
    """The settings that are carried over. Raises: RequestError for a method that preftune does not have under this
    name.
    """
    given = {name: value for name, value in values.items() if value is not None}
    carried = Carried({**_DEFAULTS, **given})
    if carried.take("process_reward_model"):
        raise RequestError("process_reward_model: preftune has no rewards of single steps. See preftune reward --help.")
    method = "reward" if carried.take("reward_model") else str(carried.take("rl", "sft"))
    if method not in (*_METHODS, "sft", "reward"):
        raise RequestError(
            f"rl: {method} has no counterpart in preftune ({', '.join(_METHODS)} have). See preftune --help."
        )
    carried.command, settings = _METHODS.get(method, (method, {}))
    carried.settings |= settings
    if carried.command == "dpo":
        carried.settings["beta"] = 0.1  # theirs for every loss; preftune's is that of the loss's authors
    if method == "simpo" and (likelihood := carried.take("cpo_alpha", 1.0)):
        carried.settings["rpo_alpha"] = likelihood  # theirs is TRL's CPOTrainer, which adds it unless this is 0
    carried.without_effect(("cpo_alpha",), "without rl: simpo")
    _adapter(carried)
    axolotl_data.read(carried)
    for name in ("bf16", "fp16"):
        if str(carried.left.get(name)).lower() in ("auto", "full"):
            carried.lost[f"{name}: {carried.take(name)}"] = "The precision policy chooses the dtypes."
    _steps(carried, given)
    carried.warmup(_WARMUP)
    carried.held_out_share("val_set_size")
    carried.sharding()
    carried.lose(_LOST)
    carried.rename(_NAMES)
    return carried


def _steps(carried: Carried, given: Mapping[str, Any]) -> None:
    """`batch_size`: the rows of a step on one device, of which the accumulation follows unless it is given."""
    total, rows = carried.take("batch_size"), int(carried.left["micro_batch_size"])
    if total is None:
        return
    accumulated = given.get("gradient_accumulation_steps")
    if accumulated is not None:
        if int(accumulated) * rows != int(total):
            carried.lost[f"batch_size: {total}"] = "gradient_accumulation_steps is given too, and is used."
    elif int(total) % rows:
        carried.lost[f"batch_size: {total}"] = (
            f"It is no multiple of micro_batch_size ({rows}). Write gradient_accumulation_steps."
        )
    else:
        carried.settings["gradient_accumulation_steps"] = int(total) // rows


def _adapter(carried: Carried) -> None:
    kind = carried.take("adapter")
    if kind is None:
        carried.without_effect(_OF_ADAPTERS, "without adapter")
    elif kind not in ("lora", "qlora"):
        carried.lost[f"adapter: {kind}"] = "Only lora and qlora have a counterpart; lora is trained."
    options = {name: carried.take(f"lora_{name}") for name in ("alpha", "dropout")}
    rank, targets, linear = (
        carried.take("lora_r"),
        carried.take("lora_target_modules"),
        carried.take("lora_target_linear"),
    )
    if kind is not None:
        carried.settings["use_peft"] = True
        adapter(carried, rank=rank, targets=None if linear else targets, **options)
        if kind == "qlora":
            carried.settings["load_in_4bit"] = True
    for bits in ("load_in_4bit", "load_in_8bit"):
        if carried.take(bits):
            carried.settings[bits] = True
    continued(carried, "lora_model_dir", trains_adapter=kind is not None)
