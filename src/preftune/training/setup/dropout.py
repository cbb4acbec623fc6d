"""No randomness in the policy's forward while it trains: what DPO's loss, PPO's ratio and their reference assume."""

from __future__ import annotations

import inspect
from types import CodeType, MethodType
from typing import Any

from torch import nn

from preftune.log import detail, say

_RATES = ("dropout", "layerdrop")
"""Parts of the names that modules and configs give to such rates."""
_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""Noise on what experts and their routers are given. Not PhiMoE's `router_jitter_noise`, a threshold that counts in
evaluation too.
"""
_DRAWS_EXPERTS = "router_jitter_noise"
"""What modules have that draw the experts by chance in training mode, with no rate that would end it (PhiMoE)."""
_LORA_DROPOUT = 0.05
"""The command line's default, as TRL's: a user who left it out did not ask for it."""


def dropout_off(model: nn.Module) -> None:
    """No dropout anywhere, nor other noise that a rate governs; LoRA's is announced, because the user asked for it."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    rates = {float(config.lora_dropout) for config in configs.values() if getattr(config, "lora_dropout", 0)}
    for module in model.modules():
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float | int):
            module.p = 0.0  # type: ignore[assignment]
        for name, value in vars(module).items():  # OPT and others hold the rate as a number, for F.dropout
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
    """In the place of `train`: the module stays in evaluation mode."""
    return module


def _is_rate(name: str) -> bool:
    return name in _NOISE or any(part in name for part in _RATES)


def _rates_of_config_off(module: nn.Module) -> None:
    """Where a forward reads a rate from its config each time (Falcon, Persimmon), it is the config's that counts."""
    config: Any = getattr(module, "config", None)
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if config is None or not isinstance(code, CodeType):
        return
    for name in code.co_names:
        if _is_rate(name) and isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
