"""Sampling in which every row of a batch draws from its own seed, so that neighbours and resuming change nothing; from
one model, or from the geometric mixture of two.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from preftune.generation.shared_prompts import has_virtual_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig


class DrawByRow(LogitsProcessor):
    """Draws the next token of each row by inverting its distribution function at the row's own random number.

    The returned scores leave only that token, which `generate` then takes as the likeliest. So the processors that
    shape the distribution precede this one, and the configuration disables sampling."""

    def __init__(self, uniforms_RT: npt.NDArray[np.float64], *, width: int) -> None:
        """
        Args:
            uniforms_RT: numbers in [0, 1), one per row and new token.
            width: number of tokens of the padded prompts.
        """
        self._uniforms_RT = torch.from_numpy(uniforms_RT)
        self._width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = "cpu" if scores.device.type == "mps" else scores.device  # MPS knows no float64
        uniform_R = self._uniforms_RT[:, input_ids.shape[1] - self._width].to(place)
        probabilities_RV = scores.float().softmax(-1).to(place)
        reached_RV = probabilities_RV.double().cumsum(-1)
        # right=True skips tokens of probability zero; the clamp is for a sum that rounding left below the number
        token_R1 = torch.searchsorted(reached_RV, (uniform_R * reached_RV[:, -1]).unsqueeze(1), right=True)
        token_R1 = token_R1.clamp(max=scores.shape[1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, token_R1, 0.0)


class RowDraws:
    """How rows are sampled as `config` says, each from its own seed; rows may leave.

    Attributes:
        config: for `model.generate`, which then samples nothing itself.
    """

    def __init__(
        self,
        config: GenerationConfig,
        seeds: Sequence[int],
        *,
        width: int,
        device: Any,
        first: Sequence[LogitsProcessor] = (),
    ) -> None:
        """
        Args:
            width: number of tokens of the padded prompts.
            first: processors of the model's logits, before temperature and cuts.
        """
        self.config = copy.deepcopy(config)
        self.config.do_sample, self.config.num_beams = False, 1
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(self.config, name, None)
        self._uniforms_RT = np.stack([np.random.default_rng(seed).random(config.max_new_tokens) for seed in seeds])
        self._shaping = [*first, *_shaping(config, device)]
        self._width = width

    def processors(self, rows: Sequence[int] | None = None) -> LogitsProcessorList:
        """The processors of these rows; of all by default."""
        uniforms_RT = self._uniforms_RT if rows is None else self._uniforms_RT[list(rows)]
        return LogitsProcessorList([*self._shaping, DrawByRow(uniforms_RT, width=self._width)])


def _shaping(config: GenerationConfig, device: Any) -> list[LogitsProcessor]:
    """The processors that transformers applies before sampling, in its order (`GenerationMixin._get_logits_processor`).

    preftune's processor must come after these, but a processor that is passed to `generate` comes before them.
    """
    made: list[LogitsProcessor] = []
    if config.temperature is not None and config.temperature != 1.0:
        made.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        made.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        made.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        made.append(MinPLogitsWarper(config.min_p))
    if config.typical_p is not None and config.typical_p < 1.0:
        made.append(TypicalLogitsWarper(config.typical_p))
    if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
        made.append(EpsilonLogitsWarper(config.epsilon_cutoff))
    if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
        made.append(EtaLogitsWarper(config.eta_cutoff, device=device))
    return made


class OfFirstRank(LogitsProcessor):
    """The scores of the first rank on all ranks, so that they generate the same tokens in equally many passes."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.contiguous()
        torch.distributed.broadcast(scores, src=0)
        return scores


class GeometricMixture(LogitsProcessor):
    """Logits of `p(v)^(1 - weight) q(v)^weight / Z`, where p is the model that generates and q another one. Munos et
    al. 2023 (arXiv:2312.00886), section 7.1.

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
            cached = not has_virtual_tokens(model)  # PEFT puts these in front of every forward pass, cached or not
            output = model(
                input_ids=input_ids[:, self._seen :],
                attention_mask=mask,
                use_cache=cached,
                past_key_values=self._cache,
                **self._positions(model, mask),
            )
        self._cache = getattr(output, "past_key_values", None) if cached else None
        self._seen = 0 if self._cache is None else input_ids.shape[1]
        return torch.lerp(scores.float(), output.logits[:, -1].float(), self._weight)

    def _positions(self, model: Any, mask: Tensor) -> dict[str, Tensor]:
        """Positions without the padding, for models that take them; rows with virtual tokens have no padding."""
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        if has_virtual_tokens(model) or "position_ids" not in inspect.signature(whole.forward).parameters:
            return {}
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, self._seen :]}
