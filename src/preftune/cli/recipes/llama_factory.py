"""LLaMA-Factory's recipes: `stage`, `pref_loss`, `pref_beta`, `finetuning_type`, datasets by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.cli.recipes import llama_factory_data
from preftune.cli.recipes.carried import Carried, adapter, continued, listed
from preftune.errors import RequestError

_COMMANDS = {"dpo": "dpo", "kto": "kto", "sft": "sft", "rm": "reward", "ppo": "ppo"}
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
_DEFAULTS = {"learning_rate": 5e-5, "cutoff_len": 2048}
"""LLaMA-Factory's defaults, where preftune's differ."""
_ATTENTION = {"sdpa": "sdpa", "disabled": "eager"}
_OF_ADAPTERS = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "additional_target",
    "quantization_bit",
    "create_new_adapter",
)
_NAMES = {
    "model_name_or_path": "model_name_or_path",
    "cutoff_len": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "overwrite_output_dir": "overwrite",
    "pref_beta": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
    "double_quantization": "use_bnb_nested_quant",
}
_LOST = {
    "template": "The model's own chat template is used.",
    "overwrite_cache": "Caches are addressed by content.",
    "plot_loss": "report.html has the curves.",
    "use_unsloth": "preftune has its own engine.",
    "enable_liger_kernel": "The head is chunked already.",
    "packing": "Rows are always packed without padding.",
    "neat_packing": "Rows are always packed without padding.",
    "upcast_layernorm": "The precision policy chooses the dtypes.",
    "quantization_method": "Only bitsandbytes quantises, in 4 and 8 bits.",
    "ddp_timeout": "Ranks exchange gradients after the backward pass.",
    "do_eval": "Evaluation follows from eval_strategy.",
    "media_dir": "Only text is trained.",
    "reward_model_type": "What reward_model is, its folder says.",
    "reward_model_adapters": "Name the folder of the reward model's adapter as reward_model.",
    "freeze_trainable_layers": "Layers are not frozen one by one.",
}


def is_llama_factory(values: Mapping[str, Any]) -> bool:
    """Whether a recipe is written for LLaMA-Factory."""
    return "stage" in values and bool({"finetuning_type", "template", "cutoff_len", "dataset"} & set(values))


def read(values: Mapping[str, Any], folder: Path) -> Carried:
    """The settings that are carried over.

    Args:
        folder: folder of the recipe, to which paths are relative.
    Raises: RequestError for a stage that preftune does not have.
    """
    carried = Carried({**_DEFAULTS, **values})
    stage = str(carried.take("stage"))
    if stage not in _COMMANDS:
        raise RequestError(f"stage: {stage} has no counterpart in preftune (dpo, kto, sft, rm and ppo have).")
    carried.command = _COMMANDS[stage]
    _loss(carried, stage)
    _adapter(carried)
    llama_factory_data.read(carried, folder)
    _reference(carried)
    carried.warmup(zero_counts=False)
    if carried.take("disable_gradient_checkpointing"):
        carried.settings["gradient_checkpointing"] = False
    asked = str(carried.take("flash_attn", "auto"))
    if asked in _ATTENTION:
        carried.settings["attn_implementation"] = _ATTENTION[asked]
    elif asked != "auto":
        carried.lost["flash_attn"] = "The packed engine has its own attention."
    carried.held_out_share("val_size")
    carried.sharding(folder)
    carried.lose(_LOST)
    if carried.take("do_train") is False:
        carried.lost["do_train"] = f"preftune {carried.command} trains."
    carried.rename(_NAMES)
    return carried


def _loss(carried: Carried, stage: str) -> None:
    if stage != "dpo":
        carried.lose({"pref_ftx": f"preftune {carried.command} does not add a likelihood term."})
        carried.without_effect(("pref_loss", "pref_bco_weight", "simpo_gamma", "ld_alpha"), f"with stage: {stage}")
        return
    loss, likelihood = str(carried.take("pref_loss", "sigmoid")), carried.take("pref_ftx")
    if loss not in _LOSSES:
        carried.lost["pref_loss"] = (
            f"{loss} is not one of preftune's losses of pairs (kto_pair no longer exists in any tool). sigmoid is used."
        )
    carried.settings["loss_type"] = _LOSSES.get(loss, "sigmoid")
    carried.settings.setdefault("beta", 0.1)  # theirs for every loss; preftune's is that of the loss's authors
    if loss == "orpo":
        carried.settings["sft_mean"] = "completions"
    if likelihood:
        carried.settings |= {"rpo_alpha": likelihood, "sft_mean": "completions"}
    if bco := carried.take("pref_bco_weight"):
        carried.settings |= {"loss_type": [carried.settings["loss_type"], "bco_pair"], "loss_weights": [1.0, bco]}
    if alpha := carried.take("ld_alpha"):
        carried.settings |= {"ld_alpha": alpha, "ld_policy_only": True}
    if loss == "simpo":
        carried.settings["simpo_gamma"] = carried.take("simpo_gamma", 0.5)
    carried.without_effect(("simpo_gamma",), f"with pref_loss: {loss}")


def _adapter(carried: Carried) -> None:
    kind = str(carried.take("finetuning_type", "lora"))
    if kind != "lora":
        continued(carried, "adapter_name_or_path", trains_adapter=False)
        carried.without_effect(_OF_ADAPTERS, f"with finetuning_type: {kind}")
        if kind != "full":
            carried.lost["finetuning_type"] = f"{kind}: only lora and full have a counterpart; all weights are trained."
        return
    bits = carried.take("quantization_bit")
    options = {
        "rank": carried.take("lora_rank", 8),
        "dropout": carried.take("lora_dropout", 0.0),
        "targets": carried.take("lora_target", "all"),
    }
    alpha = carried.take("lora_alpha", 2 * int(options["rank"]))
    carried.settings["use_peft"] = True
    adapter(carried, alpha=alpha, **options)
    if layers := carried.take("additional_target"):
        carried.settings["lora_modules_to_save"] = listed(layers)
    if bits is not None and int(bits) in (4, 8):
        carried.settings[f"load_in_{bits}bit"] = True
    elif bits is not None:
        carried.lost[f"quantization_bit: {bits}"] = "bitsandbytes quantises in 4 and 8 bits."
    fresh = bool(carried.take("create_new_adapter"))
    continued(carried, "adapter_name_or_path", trains_adapter=True, fresh=fresh)


def _reference(carried: Carried) -> None:
    """`ref_model`: preftune's commands take the reference from the model that is trained."""
    model = carried.left.get("model_name_or_path")
    other = carried.take("ref_model")
    if other is not None and (other != model or "base_model" in carried.settings):
        carried.lost["ref_model"] = (
            f"{other} is NOT the reference: preftune's commands take the model as it is before training. Another "
            "reference is given in Python: DPOTrainer(model=..., ref_model=...)."
        )
    if adapters := carried.take("ref_model_adapters"):
        carried.lost["ref_model_adapters"] = (
            f"{adapters} is NOT part of the reference, which is the model as it is before training. Merge it (preftune "
            "merge) and give the result in Python: DPOTrainer(model=..., ref_model=...)."
        )
    for name in ("ref_model_quantization_bit", "reward_model_quantization_bit"):
        if carried.take(name):
            carried.lost[name] = "A reference or reward model is loaded in the precision of the policy."
