"""Sampling from the geometric mixture of two models (Munos et al. 2023, arXiv:2312.00886, section 7.1)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor


class GeometricMixture(LogitsProcessor):
    """Logits of `p(v)^(1 - weight) q(v)^weight / Z`, where p is the model that generates and q another one.

    The softmax of a weighted mean of logits is that mixture, normalised token by token, as in the paper. The other
    model has a key-value cache of its own, so each token costs one forward pass of it.
    """

    def __init__(
        self, other: Callable[[], AbstractContextManager[Any]], attention_mask: Tensor, *, weight: float
    ) -> None:
        """
        Args:
            other: opens the other model; it may be the same model, changed as long as the context lasts.
            attention_mask: (rows, width) of the prompts, padded on the left.
            weight: of the other model, 0 to 1.
        """
        self._other, self._mask, self._weight = other, attention_mask, weight
        self._seen = 0
        self._cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        added = input_ids.shape[1] - self._mask.shape[1]
        mask = torch.cat([self._mask, self._mask.new_ones(len(input_ids), added)], dim=1)
        with self._other() as model:
            output = model(
                input_ids=input_ids[:, self._seen :],
                attention_mask=mask,
                use_cache=True,
                past_key_values=self._cache,
                **self._positions(model, mask),
            )
        self._cache = getattr(output, "past_key_values", None)
        self._seen = 0 if self._cache is None else input_ids.shape[1]
        return torch.lerp(scores.float(), output.logits[:, -1].float(), self._weight)

    def _positions(self, model: Any, mask: Tensor) -> dict[str, Tensor]:
        """Positions that do not count the padding, for models that take them."""
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        if "position_ids" not in inspect.signature(whole.forward).parameters:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, self._seen :]}
