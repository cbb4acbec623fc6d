"""Prompts that several rows share are computed once, and their keys and values are given to all of these rows."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.75
"""Of the rows: with more different prompts than this, all rows are computed in one pass as they are."""


def shared_prompts(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """The cache of all rows' prompts without their last token; None where little is shared, or the model's cache
    holds more than keys and values of its tokens.

    Args:
        model: not one that `begins_at_the_prompt`.
        input_ids, attention_mask: (rows, tokens), padded on the left.
    """
    if input_ids.shape[1] < 2:
        return None
    rows, place = torch.unique(torch.cat([input_ids, attention_mask], dim=1), dim=0, return_inverse=True)
    if len(rows) > _SHARE * len(input_ids) or not _serves(model):
        return None
    from transformers import DynamicCache

    whole = _whole(model)
    cache = DynamicCache(config=whole.config)
    if not can_leave(cache):
        return None
    width = input_ids.shape[1]
    mask = rows[:, width:-1]
    known = inspect.signature(whole.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    if "position_ids" in known:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    model(input_ids=rows[:, : width - 1], attention_mask=mask, past_key_values=cache, use_cache=True, **options)
    if cache.get_seq_length() != width - 1 or not can_leave(cache):
        return None
    cache.batch_select_indices(place.cpu())  # on the CPU, where it can index the layers of a model on several devices
    return cache


def begins_at_the_prompt(model: Any) -> bool:
    """Whether an adapter does something where the prompt begins or at a place in it, which `model.generate` alone
    arranges: virtual tokens, aLoRA.
    """
    configs = getattr(model, "peft_config", None) or {}
    return has_virtual_tokens(model) or any(getattr(c, "alora_invocation_tokens", None) for c in configs.values())


def has_virtual_tokens(model: Any) -> bool:
    """Whether an adapter puts tokens of its own in front of every text."""
    return any(config.is_prompt_learning for config in (getattr(model, "peft_config", None) or {}).values())


def _serves(model: Any) -> bool:
    whole = _whole(model)
    supports = getattr(whole, "_supports_default_dynamic_cache", bool)
    return not whole.config.is_encoder_decoder and bool(supports())


def _whole(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_leave(cache: Any) -> bool:
    """Whether rows can be taken out of this cache: keys and values by token, and no states of another kind.

    Where it cannot, the second round begins again from the tokens and goes on to the end.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", [])
    return type(cache) is DynamicCache and all(type(x) in (DynamicLayer, DynamicSlidingWindowLayer) for x in layers)
