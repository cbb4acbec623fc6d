"""Sampling in which every row of a batch draws from its own seed, so that neighbours and resuming change nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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

if TYPE_CHECKING:
    from transformers import GenerationConfig


class DrawByRow(LogitsProcessor):
    """Draws the next token of each row by inverting its distribution function at the row's own random number.

    The scores that come back leave that one token, which `generate` then takes as the likeliest. So the processors that
    shape the distribution stand before it, and the configuration says that nothing is sampled.
    """

    def __init__(self, uniforms_RT: npt.NDArray[np.float64], *, width: int) -> None:
        """
        Args:
            uniforms_RT: numbers in [0, 1), one per row and new token.
            width: tokens of the padded prompts.
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


def drawn_by_row(
    config: GenerationConfig,
    seeds: Sequence[int],
    *,
    width: int,
    device: Any,
    first: Sequence[LogitsProcessor] = (),
) -> dict[str, Any]:
    """Arguments of `model.generate` that sample as `config` says, row by row from `seeds`.

    Args:
        first: processors of the model's logits, before temperature and cuts.
    """
    drawing = copy.deepcopy(config)
    drawing.do_sample, drawing.num_beams = False, 1
    for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
        setattr(drawing, name, None)
    uniforms_RT = np.stack([np.random.default_rng(seed).random(config.max_new_tokens) for seed in seeds])
    processors = LogitsProcessorList([*first, *_shaping(config, device)])
    processors.append(DrawByRow(uniforms_RT, width=width))
    return {"generation_config": drawing, "logits_processor": processors}


def _shaping(config: GenerationConfig, device: Any) -> list[LogitsProcessor]:
    """What transformers applies before it samples, in its order (`GenerationMixin._get_logits_processor`).

    Ours must come after these, and a processor that is passed to `generate` comes before them.
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
