"""LLaMA-Factory's recipes: `stage`, `pref_loss`, `pref_beta`, `finetuning_type`, datasets by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.cli.recipes.carried import Carried, adapter
from preftune.errors import RequestError

_COMMANDS = {"dpo": "dpo", "kto": "kto", "sft": "sft", "rm": "reward", "ppo": "ppo"}
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
_DEFAULTS = {"learning_rate": 5e-5, "cutoff_len": 2048}
"""LLaMA-Factory's defaults, where preftune's differ."""
_NAMES = {
    "model_name_or_path": "model_name_or_path",
    "cutoff_len": "max_length",
    "preprocessing_num_workers": "dataset_num_proc",
    "overwrite_output_dir": "overwrite",
    "pref_beta": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "val_size": "eval_fraction",
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
    _data(carried, folder)
    if ratio := carried.take("warmup_ratio"):
        carried.settings["warmup_steps"] = ratio
    if carried.take("disable_gradient_checkpointing"):
        carried.settings["gradient_checkpointing"] = False
    attention = {"sdpa": "sdpa", "disabled": "eager"}.get(str(carried.take("flash_attn", "auto")))
    if attention is not None:
        carried.settings["attn_implementation"] = attention
    carried.sharding(folder)
    carried.lose(_LOST)
    carried.take("do_train")
    carried.rename(_NAMES)
    return carried


def _loss(carried: Carried, stage: str) -> None:
    loss, likelihood = str(carried.take("pref_loss", "sigmoid")), carried.take("pref_ftx")
    if stage != "dpo":
        if likelihood:
            carried.lost["pref_ftx"] = f"preftune {carried.command} does not add a likelihood term."
        return
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
    gamma = carried.take("simpo_gamma")
    if loss == "simpo":
        carried.settings["simpo_gamma"] = 0.5 if gamma is None else gamma


def _adapter(carried: Carried) -> None:
    kind = str(carried.take("finetuning_type", "lora"))
    bits = carried.take("quantization_bit")
    options = {
        "rank": carried.take("lora_rank", 8),
        "dropout": carried.take("lora_dropout", 0.0),
        "targets": carried.take("lora_target", "all"),
    }
    alpha = carried.take("lora_alpha", 2 * int(options["rank"]))
    if kind != "lora":
        if kind != "full":
            carried.lost["finetuning_type"] = f"{kind}: only lora and full have a counterpart; all weights are trained."
        return
    carried.settings["use_peft"] = True
    adapter(carried, alpha=alpha, **options)
    if bits is not None:
        carried.settings["load_in_4bit" if int(bits) == 4 else "load_in_8bit"] = True


def _data(carried: Carried, folder: Path) -> None:
    listed = Path(str(carried.take("dataset_dir", "data")))
    known = _dataset_info(listed if listed.is_absolute() else folder / listed, folder)
    samples = carried.take("max_samples")
    for key in ("dataset", "eval_dataset"):
        names = carried.take(key)
        names = [one.strip() for one in names.split(",")] if isinstance(names, str) else list(names or [])
        places = [_place(name, known, carried) for name in names]
        if places and key == "dataset":
            carried.settings["dataset_name"] = places
        elif places:
            carried.held_out(places, key)
    if samples:
        carried.settings["dataset_train_split"] = f"train[:{samples}]"


def _dataset_info(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        file = folder / "dataset_info.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RequestError(
                    f"{file} is not JSON ({error}). Correct it, or name the data with --data."
                ) from error
            return {name: {**entry, "_folder": folder} for name, entry in found.items() if isinstance(entry, dict)}
    return {}


def _place(name: str, known: Mapping[str, Any], carried: Carried) -> str:
    entry = known.get(name)
    if entry is None:
        carried.lost[f"dataset {name}"] = "No dataset_info.json that was found lists it: write its path or hub id."
        return name
    columns = {theirs: column for theirs, column in (entry.get("columns") or {}).items() if isinstance(column, str)}
    ours = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "messages": "messages", "kto_tag": "label"}
    renamed = [f"{ours[theirs]}={column}" for theirs, column in columns.items() if ours.get(theirs, column) != column]
    if renamed and carried.settings.setdefault("columns", renamed) != renamed:
        carried.lost[f"columns of {name}"] = (
            f"Those of another dataset are used; those of this one are {', '.join(renamed)}."
        )
    if "file_name" in entry:
        return str(Path(entry["_folder"]) / entry["file_name"])
    return str(entry.get("hf_hub_url", name))
