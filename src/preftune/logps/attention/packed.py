"""Attention over packed groups, registered with transformers under the name "preftune". Model code stays untouched.

A packed forward passes its `GroupLayout` as the keyword argument `group_layout` through the model to this module's
function, so that gradient checkpointing, which recomputes layers during the backward pass, finds it again. Without a
layout the function is ordinary masked attention, so that the same model generates with left padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from preftune.errors import UnsupportedLayoutError
from preftune.logps.attention import cpu, cuda, flex
from preftune.logps.layout import GroupLayout
from preftune.logps.request import current_request

NAME = "preftune"

# What an attention function may be given besides the layout. Anything else that is not None changes the result in a
# way that is unknown here, so it is refused rather than ignored.
# fmt: off
_HARMLESS = frozenset((
    "cache_position", "deterministic", "head_mask", "is_causal", "layer_idx", "logits_to_keep", "num_items_in_batch",
    "output_attentions", "output_hidden_states", "output_router_logits", "past_key_value", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "use_cache",
))
# fmt: on


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    group_layout: GroupLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers' `AttentionInterface`.

    Args:
        query: (1, H, R, d) for a packed row; key and value with as many or fewer heads.
        attention_mask: None in a packed forward.
        group_layout: the visible keys of each query; without it this is ordinary attention.
    Returns: (1, R, H, d), and no weights.
    Raises:
        UnsupportedLayoutError: a packed forward lost its layout, or the model requests an unknown feature.
    """
    request = current_request()
    if group_layout is None:
        if request is not None and request.layout is not None:
            raise UnsupportedLayoutError(f"{type(module).__name__} does not pass the layout on to its attention")
        return _ordinary(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if request is not None:
        request.attention_calls += 1
    window, softcap, sinks = kwargs.pop("sliding_window", None), kwargs.pop("softcap", None), kwargs.pop("s_aux", None)
    unknown = sorted(k for k, v in kwargs.items() if v is not None and v is not False and k not in _HARMLESS)
    if attention_mask is not None:
        unknown.insert(0, "attention_mask")
    if unknown or kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        what = ", ".join(unknown) or "attention that is not causal"
        raise UnsupportedLayoutError(f"{type(module).__name__} requests {what} of its attention")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = in_autocast_dtype(query, key, value)
    needs_scores = softcap is not None or sinks is not None
    if dropout == 0.0 and not needs_scores and cuda.serves(query, value):
        out = cuda.varlen(query, key, value, group_layout, scale, window)
    elif dropout == 0.0 and flex.serves(query, key, value, softcap=softcap, sinks=sinks):
        out = flex.attend(query, key, value, group_layout, scale, window, softcap=softcap, sinks=sinks)
    elif dropout == 0.0 and not needs_scores and cpu.serves(query, value, group_layout, window):
        out = cpu.blocked(query, key, value, group_layout, scale)
    else:
        attend: Callable[..., Tensor] = partial(_fused, dropout=dropout)
        if needs_scores:
            attend = partial(flex.explicit, softcap=softcap, sinks=sinks, dropout=dropout)
        out = _by_segment(attend, query, key, value, group_layout, scale, window)
    return out, None


def in_autocast_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as `scaled_dot_product_attention` would take them under autocast.

    With float32 weights the rotary embedding returns queries and keys in float32, while values are in half precision;
    autocast casts for SDPA, but not for the kernels of this package."""
    device = query.device.type
    if not torch.is_autocast_enabled(device) or query.dtype == torch.float64:
        return query, key, value
    dtype = torch.get_autocast_dtype(device)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def grouped_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask for `grouped_attention`: none in a packed forward, SDPA's otherwise."""
    request = current_request()
    if request is not None and request.layout is not None:
        return None
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def register() -> None:
    """Registers attn_implementation="preftune" with transformers. Idempotent."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, grouped_mask)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """One segment by PyTorch's fused attention."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type != "cpu":  # fused kernels of older cards know no grouped heads
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        grouped = False
    options: dict[str, Any] = {"dropout_p": dropout, "is_causal": mask is None, "scale": scale, "enable_gqa": grouped}
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)


def _by_segment(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: GroupLayout,
    scale: float,
    window: int | None,
) -> Tensor:
    outputs = []
    for segment in layout.segments:
        mask, own = layout.mask(segment, window, query.device), query[:, :, segment.start : segment.stop]
        outputs.append(attend(own, segment.seen(key), segment.seen(value), mask, scale).transpose(1, 2))
    return torch.cat(outputs, 1)


def _ordinary(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention without a layout: SDPA, or the explicit form if SDPA does not support it."""
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if softcap is None and sinks is None:
        kwargs.pop("softcap", None)
        kwargs.pop("s_aux", None)
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    options = {"softcap": softcap, "sinks": sinks, "dropout": kwargs.get("dropout", 0.0)}
    return flex.explicit(query, key, value, attention_mask, scale, **options).transpose(1, 2).contiguous(), None
