"""The scaling of LoRA layers in the saved configuration: it may be changed in memory (PEFT's `set_scale`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from preftune.log import say


def keep_scaling(model: Any) -> None:
    """Sets `lora_alpha` and `alpha_pattern` of the model's adapters to what its layers compute with, and logs it.

    PEFT saves the configuration and not the layers, so a saved adapter would be another one than the trained.
    """
    for adapter, config in (getattr(model, "peft_config", None) or {}).items():
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            continue
        alphas = {name: _used_and_configured(layer, adapter, config) for name, layer in _layers(model, adapter)}
        if all(math.isclose(used, own, rel_tol=1e-6, abs_tol=1e-12) for used, own in alphas.values()):
            continue
        before, pattern = config.lora_alpha, dict(config.alpha_pattern or {})
        factors = [used / own if own else math.nan for used, own in alphas.values()]
        if max(factors) - min(factors) <= 1e-6 * max(map(abs, factors)):
            config.lora_alpha = _whole(before * factors[0])
            config.alpha_pattern = {name: _whole(alpha * factors[0]) for name, alpha in pattern.items()}
        else:
            config.alpha_pattern = {name: _whole(used) for name, (used, _) in alphas.items()}
        for name, layer in _layers(model, adapter):
            layer.lora_alpha[adapter] = _whole(alphas[name][0])
        now = f"lora_alpha={config.lora_alpha:g} ({before:g} before)" if config.lora_alpha != before else ""
        changed = " and ".join(filter(None, (now, "alpha_pattern" * (config.alpha_pattern != pattern))))
        say(f"the scaling of adapter {adapter!r} was changed in memory; it is saved as {changed}.")


def _layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """The layers of an adapter, by the name with which PEFT looks up `alpha_pattern`."""
    for path, layer in model.base_model.model.named_modules():
        if isinstance(getattr(layer, "scaling", None), dict) and adapter in layer.scaling and adapter in layer.r:
            parameter = getattr(layer, "parameter_name", None)  # of a layer around a parameter, such as all experts
            yield path.replace(".base_layer", "") + (f".{parameter}" if parameter else ""), layer


def _used_and_configured(layer: Any, adapter: str, config: Any) -> tuple[float, float]:
    """The `lora_alpha` that a layer's scaling amounts to, and the one that it was made with."""
    rank = math.sqrt(layer.r[adapter]) if config.use_rslora else layer.r[adapter]
    return float(layer.scaling[adapter]) * rank, float(layer.lora_alpha[adapter])


def _whole(alpha: float) -> float:
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha
