"""Dropout and other noise of the policy's forward pass, switched off: DPO's loss and PPO's ratio assume that there is
none.
"""

from __future__ import annotations

import inspect
from types import CodeType, MethodType
from typing import Any

from torch import nn

from preftune.log import detail, say

_RATES = ("dropout", "layerdrop")
"""Parts of the names of dropout rates in modules and configs."""
_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""Names of the noise on the inputs of experts and routers. PhiMoE's `router_jitter_noise` is not among them: it is a
threshold that has an effect in evaluation too.
"""
_DRAWS_EXPERTS = "router_jitter_noise"
"""An attribute of modules that choose experts at random in training mode, which no rate switches off (PhiMoE)."""
_LORA_DROPOUT = 0.05
"""The default of the command line and of TRL, which a user did not set."""


def dropout_off(model: nn.Module) -> None:
    """Set every dropout rate of a model, and the rates of other noise, to 0, in place. A `lora_dropout` above 0 is
    logged, and so is noise of an adapter that cannot be switched off.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    rates = {float(config.lora_dropout) for config in configs.values() if getattr(config, "lora_dropout", 0)}
    for module in model.modules():
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float | int):
            module.p = 0.0  # type: ignore[assignment]
        for name, value in vars(module).items():  # OPT and others store the rate as a number, for F.dropout
            if not _is_rate(name):
                continue
            if isinstance(value, float):
                setattr(module, name, 0.0)
            elif isinstance(value, dict):  # PEFT's layers, one for each adapter
                value.update((key, 0.0) for key, rate in value.items() if isinstance(rate, float))
        _rates_of_config_off(module)
        if hasattr(module, _DRAWS_EXPERTS):
            module.eval()
            module.train = MethodType(_as_it_is, module)  # type: ignore[method-assign]
    if rates:
        rate = ", ".join(f"{r:g}" for r in sorted(rates))
        report = detail if rates == {_LORA_DROPOUT} else say
        report(f"lora_dropout={rate} is off while disable_dropout=True; set disable_dropout=False to train with it.")
    for name, config in configs.items():
        if hasattr(config, "sample_at_inference") or getattr(config, "monteclora_config", None):
            say(
                f"adapter {name!r} (PVeRA, MonteCLoRA) samples its weights at random during training, which cannot be "
                "turned off: losses and margins of training contain its noise. Use those of the evaluation."
            )


def _as_it_is(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces `train`: the module stays in evaluation mode."""
    return module


def _is_rate(name: str) -> bool:
    return name in _NOISE or any(part in name for part in _RATES)


def _rates_of_config_off(module: nn.Module) -> None:
    """Set the rates of a config to 0 if the module's forward reads them from it each time (Falcon, Persimmon)."""
    config: Any = getattr(module, "config", None)
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if config is None or not isinstance(code, CodeType):
        return
    for name in code.co_names:
        if _is_rate(name) and isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
