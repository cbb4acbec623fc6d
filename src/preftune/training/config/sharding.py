"""How a model is sharded over devices with torch's FSDP2: read from `fsdp` and `fsdp_config`, as transformers' programs
have them, and from the environment in which `accelerate launch` starts a program with an FSDP config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from preftune.errors import ConfigError, did_you_mean
from preftune.training.config.kinds import read_mapping
from preftune.zero_stages import as_fsdp


@dataclass(frozen=True, slots=True)
class Sharding:
    """Weights, gradients and optimiser state are divided among the ranks; each layer is gathered while it computes."""

    reshard_after_forward: bool = True
    """Whether a layer's whole weights are freed between its forward and its backward pass (ZeRO-3); otherwise they are
    kept, which takes more memory and less communication (ZeRO-2).
    """
    hybrid: bool = False
    """Sharded within each node, and replicated over the nodes."""
    replicas: int | None = None
    """Number of replicas for `hybrid`; by default the number of nodes."""
    cpu_offload: bool = False
    """Weights, gradients and optimiser state stay in main memory and are updated there."""
    layer_classes: tuple[str, ...] = ()
    """Classes of the modules that are sharded one by one; empty for the model's own layers."""
    activation_checkpointing: bool = False
    """Switches `gradient_checkpointing` on."""
    divided_checkpoints: bool = False
    """Each rank writes its own part of a checkpoint (`state_dict_type: SHARDED_STATE_DICT`)."""
    weights_on_first_rank: bool = False
    """Only the first rank of each node has loaded the weights (`cpu_ram_efficient_loading`)."""

    def describe(self, ranks: int, replicas: int) -> str:
        """One line for the log."""
        over = f"{ranks} ranks" if replicas == 1 else f"{ranks // replicas} ranks, {replicas} times"
        kept = "" if self.reshard_after_forward else "; gathered weights are kept until the backward pass"
        return f"sharding: weights, gradients and optimiser over {over} (FSDP2){kept}."


ENABLED = "ACCELERATE_USE_FSDP"
"""Set to true by `accelerate launch` with an FSDP config."""

_STRATEGIES: dict[str, dict[str, Any]] = {
    "full_shard": {"reshard_after_forward": True},
    "shard_grad_op": {"reshard_after_forward": False},
    "hybrid_shard": {"reshard_after_forward": True, "hybrid": True},
    "hybrid_shard_zero2": {"reshard_after_forward": False, "hybrid": True},
    "offload": {"cpu_offload": True},
    "auto_wrap": {},
}
_BY_NUMBER = {"1": "full_shard", "2": "shard_grad_op", "4": "hybrid_shard", "5": "hybrid_shard_zero2"}
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "none", "")

_WITHOUT_EFFECT = (
    "version", "backward_prefetch", "forward_prefetch", "use_orig_params", "sync_module_states", "limit_all_gathers",
    "min_num_params",
)  # fmt: skip
"""Of FSDP1, or of wrapping by size."""
_STATE_DICTS = {"full_state_dict": False, "sharded_state_dict": True}
_ONLY: dict[str, tuple[Any, str]] = {
    "ignored_modules": (None, "all weights are sharded"),
    "activation_checkpointing_offload": (False, "activations are computed again, not kept in main memory"),
    "xla": (False, "preftune does not train on TPUs"),
    "xla_fsdp_v2": (False, "preftune does not train on TPUs"),
    "xla_fsdp_grad_ckpt": (False, "preftune does not train on TPUs"),
    "mixed_precision_policy": (None, "bf16 sets the precision"),
}
_KNOWN = (
    "reshard_after_forward", "sharding_strategy", "cpu_offload", "offload_params", "auto_wrap_policy",
    "transformer_layer_cls_to_wrap", "transformer_cls_to_wrap", "activation_checkpointing", "cpu_ram_efficient_loading",
    "replicas", "state_dict_type", *_WITHOUT_EFFECT, *_ONLY,
)  # fmt: skip


OTHER_OPTIMISERS = (
    "bnb", "8bit", "4bit", "galore", "apollo", "adafactor", "lion", "ademamix", "adalomo", "grokadamw",
)  # fmt: skip
"""Parts of the names of optimisers that cannot update divided weights."""


def shards(optimiser: str) -> bool:
    """Whether an optimiser can update divided weights."""
    return not any(name in optimiser for name in OTHER_OPTIMISERS)


def refusal(*, quantised: bool, fp16: bool, compiled: bool, optimiser: str) -> str | None:
    """What of a training cannot be combined with sharding, and the remedy; None if all of it can."""
    reasons = {
        "a quantised model: bitsandbytes' 4-bit weights cannot be divided by rows. Leave fsdp out: each process then "
        "holds the 4-bit weights once": quantised,
        "fp16: its gradient scaling does not know divided gradients. Use bf16=True": fp16,
        "torch_compile, which is not tested with it. Remove torch_compile": compiled,
        f"optim={optimiser!r}, which does not know divided weights. Use optim='adamw_torch_fused'": not shards(
            optimiser
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def sharding_of(
    fsdp: Any, fsdp_config: Any, deepspeed: Any, environment: Mapping[str, str]
) -> tuple[Sharding | None, dict[str, Any]]:
    """What a configuration and the environment ask for.

    Args:
        fsdp: None, True, words such as "full_shard offload", or a list of them.
        fsdp_config: None, a mapping (keys with or without `fsdp_`), or the path of a JSON file with one.
        environment: that of the process; what the configuration says has priority.
    Returns: the sharding, None without one; and `fsdp_config` as a mapping.
    Raises: ConfigError for what is not honoured.
    """
    launched = environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _YES
    if launched or deepspeed not in (None, "", False):
        raise ConfigError(_in_place_of_deepspeed(deepspeed, environment))
    config = _read(fsdp_config)
    words = _words(fsdp)
    if words is None:
        if environment.get(ENABLED, "").lower() not in _YES:
            return None, config
        config = _from_environment(environment) | config
        words = []
    found = Sharding()
    for word in words:
        found = replace(found, **_strategy(word, "fsdp"))
    for key, value in config.items():
        found = replace(found, **_setting(key, value))
    return found, config


def _in_place_of_deepspeed(deepspeed: Any, environment: Mapping[str, str]) -> str:
    """The message for a DeepSpeed config: what does the same here."""
    config, what = deepspeed, f"deepspeed={deepspeed!r:.80}"
    if deepspeed in (None, "", False):
        what = "a DeepSpeed config of accelerate launch"
        config = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        if config in (None, "", "none", "None"):
            stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
            devices = [environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{of}_DEVICE") for of in ("OPTIMIZER", "PARAM")]
            offload = {f"offload_{n}": {"device": d} for n, d in zip(("optimizer", "param"), devices, strict=True) if d}
            config = {"zero_optimization": {"stage": int(stage) if stage.isdigit() else None, **offload}}
    words = as_fsdp(config)
    if words is None:
        fix = (
            "ZeRO-3 is --fsdp full_shard, ZeRO-1 and ZeRO-2 are --fsdp shard_grad_op; offloading adds the word offload"
        )
    else:
        fix = f"--fsdp '{words}' does the same" if words else "it divides nothing: leave it out"
    return f"{what} is not honoured, as preftune shards with torch's FSDP2: {fix}. Start it with torchrun."


def _words(fsdp: Any) -> list[str] | None:
    if isinstance(fsdp, list | tuple):
        return [str(getattr(word, "value", word)).lower() for word in fsdp] or None
    text = str(fsdp).strip().lower()
    if fsdp is None or text in _NO:
        return None
    return [] if text in _YES else text.replace(",", " ").split()


def _strategy(word: Any, name: str) -> dict[str, Any]:
    text = str(getattr(word, "value", word)).lower()
    text = _BY_NUMBER.get(text, text)
    if text not in _STRATEGIES:
        hint = did_you_mean(text, list(_STRATEGIES), otherwise=f"Give one of {', '.join(_STRATEGIES)}.")
        raise ConfigError(f"{name}={word!r} is not a way of sharding. {hint}")
    return _STRATEGIES[text]


def _read(fsdp_config: Any) -> dict[str, Any]:
    if fsdp_config in (None, "", {}):
        return {}
    values = read_mapping("fsdp_config", fsdp_config, file=True)
    return {str(key).removeprefix("fsdp_"): value for key, value in values.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """What `accelerate launch` passes on; its sharding strategy is FSDP1's, and has a value for FSDP2 too."""
    config: dict[str, Any] = {
        key.removeprefix("FSDP_").lower(): value for key, value in environment.items() if key.startswith("FSDP_")
    }
    if config.get("version", "1") == "2":
        config.pop("sharding_strategy", None)
    elif "sharding_strategy" in config:
        config.pop("reshard_after_forward", None)
    return {key: None if value in ("None", "none") else value for key, value in config.items()}


def _setting(key: str, value: Any) -> dict[str, Any]:
    """One entry of `fsdp_config` as fields of `Sharding`."""
    if value is None and key in _KNOWN:
        return {}
    if key in ("reshard_after_forward", "sharding_strategy"):
        text = str(value).lower()
        if text in ("true", "false"):
            return {"reshard_after_forward": text == "true"}
        return _strategy(value, f"fsdp_config[{key!r}]")
    if key in ("cpu_offload", "offload_params"):
        return {"cpu_offload": _flag(key, value)}
    if key == "activation_checkpointing":
        return {key: _flag(key, value)}
    if key == "cpu_ram_efficient_loading":
        return {"weights_on_first_rank": _flag(key, value)}
    if key == "replicas":
        if not str(value).isdigit() or int(value) < 1:
            raise ConfigError(f"fsdp_config['replicas']={value!r} is not a number of copies. Give 1 or more.")
        return {"replicas": int(value), "hybrid": True}
    if key == "state_dict_type":
        kind = str(getattr(value, "name", value)).lower()
        if kind not in _STATE_DICTS:
            raise ConfigError(
                f"fsdp_config['state_dict_type']={value!r} is not honoured. Give FULL_STATE_DICT (whole files) or "
                "SHARDED_STATE_DICT (each rank writes its part)."
            )
        return {"divided_checkpoints": _STATE_DICTS[kind]}
    if key in ("transformer_layer_cls_to_wrap", "transformer_cls_to_wrap"):
        names = value.split(",") if isinstance(value, str) else value or ()
        return {"layer_classes": tuple(str(name).strip() for name in names if str(name).strip())}
    if key == "auto_wrap_policy":
        if str(value).upper() == "SIZE_BASED_WRAP":
            raise ConfigError(
                "fsdp_config['auto_wrap_policy']='SIZE_BASED_WRAP' is not honoured: layers are sharded one by one. "
                "Remove it, or give TRANSFORMER_BASED_WRAP."
            )
        return {}
    if key in _ONLY:
        harmless, why = _ONLY[key]
        if value not in (harmless, None, "") and str(value).lower() != str(harmless).lower():
            raise ConfigError(f"fsdp_config[{key!r}]={value!r} is not honoured: {why}. Remove it.")
        return {}
    if key in _WITHOUT_EFFECT:
        return {}
    raise ConfigError(f"fsdp_config has no setting {key!r}. {did_you_mean(key, list(_KNOWN), otherwise='Remove it.')}")


def _flag(key: str, value: Any) -> bool:
    text = str(value).lower()
    if text not in (*_YES, *_NO):
        raise ConfigError(f"fsdp_config[{key!r}]={value!r} is not true or false. Give one of them.")
    return text in _YES
