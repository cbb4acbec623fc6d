"""Rotary embeddings that depend on the longest sequence so far (`rope_type: dynamic`): each sequence starts unscaled.

transformers grows the frequencies of dynamic NTK scaling with the longest sequence so far, and restores them only when
a sequence fits the original limit. So the same tokens would be scored differently after a longer sequence. A score must
not depend on earlier ones, so each separately scored sequence starts with the frequencies that the model was loaded
with."""

from __future__ import annotations

from typing import Any

from torch import nn


def unscaled_rope(model: nn.Module) -> None:
    """Restores the frequencies that longer sequences changed; does nothing for other kinds of rope."""
    for module in grown_rope(model):
        for name, _ in list(module.named_buffers(recurse=False)):
            original = getattr(module, name.removesuffix("inv_freq") + "original_inv_freq", None)
            if name.endswith("inv_freq") and original is not None and not name.endswith("original_inv_freq"):
                module.register_buffer(name, original.to(module.get_buffer(name).device).clone(), persistent=False)
        for name in [key for key in vars(module) if key.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)


def grown_rope(model: nn.Module) -> list[Any]:
    """The rotary modules whose frequencies were changed by a sequence longer than the original limit."""
    config: Any = getattr(model, "config", None)
    if config is not None and "dynamic" not in str(config.get_text_config().to_dict().get("rope_parameters")):
        return []
    return [module for module in model.modules() if _has_grown(module)]


def _has_grown(module: Any) -> bool:
    limit = getattr(module, "original_max_seq_len", None)
    if limit is None or not hasattr(module, "rope_type"):
        return False
    kinds = module.rope_type.values() if isinstance(module.rope_type, dict) else [module.rope_type]
    if not any("dynamic" in str(kind) for kind in kinds):
        return False
    return any(int(value) > limit for key, value in vars(module).items() if key.endswith("max_seq_len_cached"))
