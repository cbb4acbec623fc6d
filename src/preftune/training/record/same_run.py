"""Comparison of a checkpoint's run with the present one: the settings and data that determine the updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from preftune.amounts import counted
from preftune.storage.run_directory import plain
from preftune.training.protocol import TrainerView
from preftune.training.record.run_record import configuration, parts

EXTENDS = ("max_steps", "num_train_epochs", "total_episodes", "max_seconds", "max_train_tokens")
"""Fields that set the end of a run. A run may be continued with other values."""
_IN_THE_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""Compared as their product with the number of processes."""
_NO_EFFECT = {
    *EXTENDS, *_IN_THE_BATCH, "output_dir", "overwrite", "allow_changed", "resume_from_checkpoint", "report_to",
    "run_name", "project", "disable_tqdm", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics",
    "per_device_eval_batch_size", "include_num_input_tokens_seen", "enable_jit_checkpoint", "push_to_hub",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold", "restore_callback_states_from_checkpoint", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps", "max_tokens_per_batch", "engine",
    "fsdp", "fsdp_config", "dataset_num_proc", "debug", "skip_memory_metrics", "do_train", "do_eval", "do_predict",
    "local_rank", "remove_unused_columns", "label_names", "length_column_name", "precompute_ref_log_probs",
    "precompute_ref_batch_size", "reference_cache", "allow_reference_mismatch", "trust_remote_code", "use_cpu",
    "generation_batch_size", "use_cache", "full_determinism", "use_vllm", "padding_free", "pad_to_multiple_of",
    "plan_only",
}  # fmt: skip
"""Fields that do not change what a training step computes, beyond rounding."""
_NO_EFFECT_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "ddp_", "dataloader_", "trackio_", "guard")
_DATALOADER = ("dataloader_drop_last",)
_SOME = 64
"""Elements of each weight that the digest of the base model includes."""
_LOADING = ("attn_implementation", "trust_remote_code", "device_map", "is_trainable", "low_cpu_mem_usage", "base_model")
"""Entries of `model_init_kwargs` that do not change the updates."""
_OF_THE_PLACE = (
    "base_model_name_or_path", "revision", "inference_mode", "init_lora_weights", "auto_mapping", "peft_version",
    "task_type", "runtime_config",
)  # fmt: skip
"""Fields of an adapter's configuration that name its source and its initialisation."""


def facts_of(trainer: TrainerView) -> dict[str, Any]:
    """The settings, data and weights of a run that its checkpoints record, as JSON."""
    args = trainer.args
    values = {name: value for name, value in configuration(args).items() if not _without_effect(name)}
    loading = values.pop("model_init_kwargs", None)
    if isinstance(loading, Mapping):
        values |= {f"model_init_kwargs.{name}": loading[name] for name in loading if name not in _LOADING}
    batch = args.rows_per_step
    facts = {
        "settings": {**values, "batch size": batch},
        "data": {"rows": _rows(trainer.train_dataset), "fingerprint": trainer.train_dataset.fingerprint},
        "adapter": _adapter(trainer.model),
        "base": base_of(trainer.model),
        "rated with": getattr(trainer, "rated_with", None),
        "ends": {name: plain(getattr(args, name, None)) for name in EXTENDS},
    }
    return dict(plain(facts))


def _rows(data: Any) -> int:
    """The number of rows; 0 for a stream, of which a run reads what its steps need."""
    return len(data) if getattr(data, "known", data) is data else 0


def best_by(trainer: TrainerView) -> dict[str, Any]:
    """The criterion of the best checkpoint, as JSON: metrics of other rows, or other metrics, cannot be compared."""
    args, data = trainer.args, [part.fingerprint for part in parts(trainer.eval_dataset)]
    return {
        "metric_for_best_model": args.metric_for_best_model,
        "greater_is_better": args.greater_is_better,
        "the held-out rows": data,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changes since a checkpoint, one phrase each. The fields of `EXTENDS` do not count."""
    found = []
    if before.get("data") != now["data"]:
        rows = [one.get("rows", "?") for one in (before.get("data") or {}, now["data"])]
        what = (
            (f"{counted(rows[0], 'row')} before, {rows[1]} now")
            if rows[0] != rows[1]
            else f"{counted(rows[0], 'row')}, with other contents"
        )
        found.append(f"the training data ({what})")
    adapters = before.get("adapter") or {}, now["adapter"] or {}
    if bool(adapters[0]) != bool(adapters[1]):
        there = ["an adapter" if adapter else "all weights" for adapter in adapters]
        found.append(f"what is trained ({there[0]} before, {there[1]} now)")
    for prefix, old, new in (("", before.get("settings") or {}, now["settings"]), ("adapter's ", *adapters)):
        found += [
            f"{prefix}{name} ({_short(old[name])} before, {_short(new[name])} now)"
            for name in sorted(set(old) & set(new))  # another version of preftune has other fields
            if old[name] != new[name]
        ]
    if None not in (before.get("base"), now["base"]) and before["base"] != now["base"]:
        found.append("the weights of the base model")
    if None not in (before.get("rated with"), now.get("rated with")) and before["rated with"] != now["rated with"]:
        found.append("the reward (another model with this name, or other settings of it)")
    return found


def changed_ends(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changed fields of `EXTENDS`, one phrase each."""
    old, new = before.get("ends") or {}, now["ends"]
    return [
        f"{name} ({_short(old.get(name))} before, {_short(new[name])} now)"
        for name in new
        if old.get(name) != new[name]
    ]


def is_of_record(trainer: TrainerView, record: Mapping[str, Any]) -> bool:
    """Whether run.json records a run with the same settings, end and data as the trainer's."""
    now = {name: value for name, value in configuration(trainer.args).items() if _compared(name)}
    before = {name: value for name, value in (record.get("configuration") or {}).items() if _compared(name)}
    train = (record.get("data") or {}).get("train")
    data = train.get("fingerprint") if isinstance(train, Mapping) else None
    return bool(before) and before == plain(now) and data == trainer.train_dataset.fingerprint


def _compared(name: str) -> bool:
    return name in EXTENDS or name in _IN_THE_BATCH or not _without_effect(name)


def _without_effect(name: str) -> bool:
    return name in _NO_EFFECT or (name.startswith(_NO_EFFECT_PREFIXES) and name not in _DATALOADER)


def _adapter(model: Any) -> dict[str, Any] | None:
    """The configuration of the active adapter, without `_OF_THE_PLACE`; None without an adapter."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = getattr(model, "active_adapter", None)
    config = configs.get(active if isinstance(active, str) else next(iter(configs)))
    if config is None:
        return None
    values = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_PLACE}
    return {name: sorted(map(str, value)) if isinstance(value, set) else value for name, value in values.items()}


def base_of(model: Any) -> str | None:
    """A digest of the first elements of every frozen weight, which distinguishes a base model from fine-tuned versions
    of it. None without an adapter, for quantised weights, and if the adapter's initialisation changes the base (such
    as PiSSA's).
    """
    known: str | None = getattr(model, "_preftune_base", None)
    if known is not None:  # computed before the weights were sharded
        return known
    configs = getattr(model, "peft_config", None)
    if not configs or getattr(model, "is_quantized", False):
        return None
    starts = {getattr(config, "init_lora_weights", True) for config in configs.values()}
    if not starts <= {True, False, "gaussian"}:
        return None
    digest = xxhash.xxh3_128()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            some = parameter.detach().flatten()[:_SOME].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    return str(digest.hexdigest())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
