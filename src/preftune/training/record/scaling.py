"""The scaling of LoRA layers in the saved configuration: it may be changed in memory (PEFT's `set_scale`).

PEFT saves the configuration and not the layers, so a saved adapter would be another one than the trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from preftune.log import say
from preftune.storage.run_directory import plain
from preftune.training.record.manifest import read_manifest


def keep_scaling(model: Any) -> None:
    """Set `lora_alpha` and `alpha_pattern` of the model's adapters to what its layers compute with, and log it.

    It is for a model as received. Afterwards PEFT's `set_scale` is relative to these values.
    """
    for adapter, config in dict(_used_configs(model)).items():
        for _, layer in _layers(model, adapter):
            layer.lora_alpha[adapter] = _whole(_used(layer, adapter, config))
        model.peft_config[adapter] = config


@contextmanager
def saved_scaling(model: Any) -> Iterator[None]:
    """Within this context, the configurations of the adapters have the values of `keep_scaling`, for the saved file.

    Afterwards they are those before: training must not depend on when it is saved.
    """
    before = {}
    for adapter, config in dict(_used_configs(model)).items():
        before[adapter], model.peft_config[adapter] = model.peft_config[adapter], config
    try:
        yield
    finally:
        for adapter, config in before.items():
            model.peft_config[adapter] = config


def restore_scaling(model: Any, folder: Path) -> None:
    """Give the layers the scaling with which the adapters in a folder were saved."""
    for adapter, config in _lora_configs(model):
        place = folder if adapter == "default" else folder / adapter
        if not (place / "adapter_config.json").is_file():
            continue
        saved: Any = PeftConfig.from_pretrained(str(place))
        for name, layer in _layers(model, adapter):
            pattern = dict(saved.alpha_pattern or {})
            alpha = float(pattern.get(get_pattern_key(list(pattern), name), saved.lora_alpha))
            if not _close(_used(layer, adapter, config), alpha):
                layer.scaling[adapter] = alpha / _divisor(layer, adapter, config)


def is_scaled_as(model: Any, folder: Path) -> bool:
    """Whether the run of a checkpoint began with the model's `lora_alpha`, by its manifest; False without one."""
    manifest, active = read_manifest(folder), str(getattr(model, "active_adapter", None))
    before = (manifest.facts.get("adapter") if manifest is not None else None) or {}
    now = dict(_lora_configs(model)).get(active)
    names = ("lora_alpha", "alpha_pattern", "use_rslora")
    return bool(before) and all(before.get(name) == plain(getattr(now, name, None)) for name in names)


def _lora_configs(model: Any) -> Iterator[tuple[str, Any]]:
    for adapter, config in (getattr(model, "peft_config", None) or {}).items():
        if str(getattr(config.peft_type, "value", config.peft_type)) == "LORA":
            yield adapter, config


def _used_configs(model: Any) -> Iterator[tuple[str, Any]]:
    """For each adapter with a changed scaling, a copy of its configuration with the values that its layers use.

    Each change is logged once.
    """
    for adapter, config in _lora_configs(model):
        layers = dict(_layers(model, adapter))
        alphas = {
            name: (_used(layer, adapter, config), float(layer.lora_alpha[adapter])) for name, layer in layers.items()
        }
        if all(_close(used, own) for used, own in alphas.values()):
            continue
        changed, pattern = copy.copy(config), dict(config.alpha_pattern or {})
        factors = [used / own if own else math.nan for used, own in alphas.values()]
        if max(factors) - min(factors) <= 1e-6 * max(map(abs, factors)):
            changed.lora_alpha = _whole(config.lora_alpha * factors[0])
            changed.alpha_pattern = {name: _whole(alpha * factors[0]) for name, alpha in pattern.items()}
        else:
            changed.alpha_pattern = {name: _whole(used) for name, (used, _) in alphas.items()}
        _say_change(model, adapter, config, changed)
        yield adapter, changed


def _say_change(model: Any, adapter: str, before: Any, now: Any) -> None:
    said: dict[str, Any] = model.__dict__.setdefault("_preftune_said_scaling", {})
    values = now.lora_alpha, now.alpha_pattern
    if said.get(adapter) == values:
        return
    said[adapter] = values
    alpha = f"lora_alpha={now.lora_alpha:g} ({before.lora_alpha:g} before)" * (now.lora_alpha != before.lora_alpha)
    patterns = "alpha_pattern" * (now.alpha_pattern != dict(before.alpha_pattern or {}))
    changed = " and ".join(filter(None, (alpha, patterns)))
    say(f"the scaling of adapter {adapter!r} was changed in memory; it is saved as {changed}.")


def _layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """The layers of an adapter, by the name with which PEFT looks up `alpha_pattern`."""
    for path, layer in model.base_model.model.named_modules():
        if isinstance(getattr(layer, "scaling", None), dict) and adapter in layer.scaling and adapter in layer.r:
            parameter = getattr(layer, "parameter_name", None)  # of a layer around a parameter, such as all experts
            yield path.replace(".base_layer", "") + (f".{parameter}" if parameter else ""), layer


def _used(layer: Any, adapter: str, config: Any) -> float:
    """The `lora_alpha` that a layer's scaling amounts to."""
    return float(layer.scaling[adapter]) * _divisor(layer, adapter, config)


def _divisor(layer: Any, adapter: str, config: Any) -> float:
    return math.sqrt(layer.r[adapter]) if config.use_rslora else float(layer.r[adapter])


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)


def _whole(alpha: float) -> float:
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha
