"""Saved adapters: their configuration, the base that they belong to, and putting them on it; new adapters; the
generation config of an adapter or a model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import ConfigError, ModelError
from preftune.models.config_values import check_adapter_values, check_values
from preftune.models.damage import ADAPTER_CONFIG, brief, reading, whole_weights
from preftune.models.locate import Location, locate

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel


def adapter_config(path: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """The PEFT config of an adapter (folder or hub id), its values checked. Raises: ModelError."""
    from peft import PeftConfig

    file = f"{os.fspath(path)}/{ADAPTER_CONFIG}"
    try:
        with reading(file):
            config = PeftConfig.from_pretrained(os.fspath(path), **({"revision": revision} if revision else {}))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} holds no readable {ADAPTER_CONFIG}: {brief(error)}") from error
    check_values(file, vars(config))
    check_adapter_values(file, config)
    return config


def adapter_base(path: str | os.PathLike[str], *, revision: str | None = None) -> str:
    """The name of the base model that an adapter (folder or hub id) was trained on.

    A relative path that does not exist in the working directory is searched next to the adapter.

    Raises: ModelError when the adapter names none.
    """
    base = adapter_config(path, revision=revision).base_model_name_or_path
    if not base:
        raise ModelError(
            f"The adapter {path} does not name its base model. Give it with --base MODEL (base_model=...)."
        )
    if not Path(base).is_absolute() and not Path(base).exists():
        beside = Path(path).expanduser() / base
        for candidate in (beside, Path(path).expanduser().parent / base):
            if candidate.is_dir():
                return str(candidate.resolve())
    return str(base)


def locate_base(
    adapter: Location, base_model: str | os.PathLike[str] | None = None, *, revision: str | None = None
) -> Location:
    """Where the base of an adapter is.

    Args:
        base_model: used instead of the one that the adapter names.
    Raises: ModelError that names the adapter and its base, if the base was not found.
    """
    if base_model is not None:
        return locate(base_model)
    base = adapter_base(adapter.name, revision=revision)
    try:
        return locate(base)
    except ModelError as error:
        lasting = (
            f" To keep it, write it into {adapter.name}/adapter_config.json as base_model_name_or_path."
            if adapter.kind == "adapter"
            else ""
        )
        raise ModelError(
            f"The adapter {adapter.name} needs the base model {base}, which was not found. ({error}) If it was "
            f"moved, give its place with --base MODEL (base_model=...).{lasting}"
        ) from error


def attach_adapter(
    model: PreTrainedModel, adapter: Location, *, revision: str | None = None, is_trainable: bool = False
) -> PeftModel:
    """Puts a saved adapter on a loaded base. Raises: ModelError if they do not fit."""
    from peft import PeftModel

    from preftune.models.quiet import quiet_peft

    adapter_config(adapter.name, revision=revision)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if adapter.local_files_only:
        options["local_files_only"] = True
    try:
        with quiet_peft(), whole_weights(adapter.name), reading(f"{adapter.name}/{ADAPTER_CONFIG}"):
            fit_embeddings(model, adapter)
            attached = PeftModel.from_pretrained(model, adapter.name, is_trainable=is_trainable, **options)
    except ImportError as error:
        raise ModelError(
            f"The adapter {adapter.name} needs a package that is not installed: {brief(error)} Install it, or correct "
            f"{ADAPTER_CONFIG}."
        ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        if is_trainable and "prompt learning adapter to trainable" in str(error):
            raise ModelError(
                f"The adapter {adapter.name} is one of virtual tokens (prompt, prefix or p-tuning), which PEFT cannot "
                "train further once it is saved. Train a new one on the base, or LoRA, which can be continued."
            ) from error
        raise ModelError(
            f"The adapter {adapter.name} does not fit the base model {model.name_or_path}: {brief(error)} "
            "Give the base that it was trained on with --base MODEL (base_model=...)."
        ) from error
    own = generation_config_of(adapter, revision=revision) if hasattr(model, "generation_config") else None
    if own is not None:  # more may end the adapter's answers than its base's
        model.generation_config = own
    return attached


def add_adapter(model: Any, peft_config: Any) -> Any:
    """The model with a new adapter; the other weights are frozen.

    Raises:
        ConfigError: `peft_config` is not a configuration of PEFT, or does not fit the model.
        ModelError: the model already has an adapter.
    """
    from peft import PeftConfig, get_peft_model
    from torch import nn

    from preftune.models.quiet import quiet_peft

    if not isinstance(peft_config, PeftConfig):
        given = peft_config.__name__ if isinstance(peft_config, type) else f"a {type(peft_config).__name__}"
        raise ConfigError(f"peft_config is {given}: pass peft.LoraConfig(r=16, ...) or another configuration of PEFT.")
    if getattr(model, "peft_config", None):
        raise ModelError(
            "the model already has an adapter, and peft_config would put another on top of it. To continue training "
            "the adapter, leave peft_config out; to start a new one, first merge the old one (preftune merge)."
        )
    if getattr(peft_config, "task_type", None) is None:
        peft_config.task_type = "CAUSAL_LM"
    for field in ("trainable_token_indices", "token_indices"):
        _check_tokens(model, peft_config, field)
    layers = dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear))
    try:
        with quiet_peft():
            return get_peft_model(model, peft_config)
    except (ValueError, TypeError) as error:
        found = ""
        if "target modules" in str(error).lower():
            found = (
                f" Its linear layers are {', '.join(layers)}; all-linear (--lora_target_modules) takes all but the "
                "head."
            )
        raise ConfigError(f"PEFT cannot put this adapter on the model: {error}{found}") from error


def _check_tokens(model: Any, config: Any, field: str) -> None:
    """The tokens whose embeddings an adapter trains; PEFT finds a wrong one only as an index, or not at all.

    Raises: ConfigError.
    """
    given = getattr(config, field, None)
    if given is None or (field == "token_indices" and not given):
        return
    modules = dict(model.named_modules())
    own = next(name for name, module in modules.items() if module is model.get_input_embeddings())
    for layer, ids in (given if isinstance(given, Mapping) else {own: given}).items():
        table = next((m for name, m in modules.items() if f".{name}".endswith(f".{layer}")), None)
        rows = getattr(getattr(table, "weight", None), "shape", (0,))[0]
        if not rows:
            raise ConfigError(
                f"{field}: the model has no layer {layer!r} with a row per token. Its embedding is {own!r}."
            )
        if not isinstance(ids, Sequence) or not all(type(one) is int for one in ids):
            raise ConfigError(
                f"{field}={ids!r:.60}: give a list of token ids, such as "
                "tokenizer.convert_tokens_to_ids(['<think>', '</think>'])."
            )
        if outside := [one for one in ids if not 0 <= one < rows]:
            raise ConfigError(
                f"{field}: there is no token {outside[0]}: {layer} has {rows:,} rows. Give ids from 0 to {rows - 1}; "
                "for new tokens, first call model.resize_token_embeddings(len(tokenizer))."
            )
        if len(set(ids)) < len(ids):
            raise ConfigError(f"{field} names token {next(i for i in ids if ids.count(i) > 1)} twice. Name it once.")
        leaf = layer.rpartition(".")[2]
        for other in ("target_modules", "modules_to_save"):
            named = getattr(config, other, None)
            if field == "trainable_token_indices" and not isinstance(named, str) and leaf in (named or ()):
                raise ConfigError(
                    f"{field} trains some rows of {leaf}, and {other} all of it. Leave {leaf} out of {other} to train "
                    f"those rows only, or {field} to train all of them."
                )


def name_base(model: PeftModel, base: str) -> None:
    """Writes the current place of the base to the adapters' configurations, which are saved and read by PEFT."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base


def generation_config_of(place: Location, *, revision: str | None = None) -> GenerationConfig | None:
    """The generation config in the folder of a model or an adapter; None without one.

    Raises: ModelError for one with a value of a wrong type, or one that transformers refuses.
    """
    from transformers import GenerationConfig

    options: dict[str, Any] = {"revision": revision} if revision else {}
    file = f"{place.name}/generation_config.json"
    try:
        with reading(file):
            config = GenerationConfig.from_pretrained(place.name, local_files_only=place.local_files_only, **options)
    except OSError:  # there is no such file
        return None
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file} cannot be used: {brief(error)} Correct it, or copy it again.") from error
    check_values(file, config.to_dict())
    return config


_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
_WHOLE_EMBEDDINGS = (".weight", ".base_layer.weight")


def fit_embeddings(model: PreTrainedModel, adapter: Location) -> None:
    """Resizes the base's vocabulary to that of the adapter's training, if it was changed before the training."""
    rows = _rows_of_embedding(adapter)
    embedding: Any = model.get_input_embeddings()
    if rows is not None and rows != embedding.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _rows_of_embedding(adapter: Location) -> int | None:
    """Number of rows of a whole embedding or head in an adapter's file; None if it holds neither."""
    file = Path(adapter.name, "adapter_model.safetensors")
    if adapter.kind != "adapter" or not file.is_file():
        return None
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            whole = name.endswith(_WHOLE_EMBEDDINGS) or ".modules_to_save." in name
            if whole and len(shape := opened.get_slice(name).get_shape()) == 2 and any(map(name.__contains__, _TABLES)):
                return int(shape[0])
            if "lora_embedding_A" in name:
                return int(opened.get_slice(name).get_shape()[1])
    return None
