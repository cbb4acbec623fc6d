"""A new adapter on a model, its configuration checked before PEFT sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from preftune.errors import ConfigError, ModelError
from preftune.models.quiet import quiet_peft


def add_adapter(model: nn.Module, peft_config: Any) -> Any:
    """The model with a new adapter; the other weights are frozen.

    Raises:
        ConfigError: `peft_config` is not a configuration of PEFT, or does not fit the model.
        ModelError: the model already has an adapter.
    """
    from peft import PeftConfig, get_peft_model

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
