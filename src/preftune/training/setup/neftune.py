"""NEFTune on packed rows: noise on the embeddings while training (Jain et al. 2023, arXiv:2310.05914).

transformers' own implementation uses the length of the row as that of the sequence. A packed row holds many sequences,
and the noise would be too small by the square root of the ratio of the two lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from preftune.logps.request import current_request


@contextmanager
def noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """Within this context, the embeddings in training mode get uniform noise within `alpha / sqrt(L D)`, with L the
    tokens of a token's own sequence and D the model's width. None adds no noise.
    """
    if alpha is None:
        yield
        return
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: _noisy(module, output, alpha)
    )
    try:
        yield
    finally:
        handle.remove()


def _noisy(module: nn.Module, output: Tensor, alpha: float) -> Tensor:
    if not module.training:
        return output
    bound = alpha / (lengths_of(output) * output.shape[-1]).sqrt()
    noise = torch.empty_like(output).uniform_(-1.0, 1.0)
    return output + noise * bound[None, :, None].to(output.dtype)


def lengths_of(embedded: Tensor) -> Tensor:
    """The number of tokens of each token's sequence, shape (R,), float32; R without a packed row.

    Args:
        embedded: the embeddings of a row, shape (1, R, D).
    """
    request = current_request()
    rows = embedded.shape[1]
    if request is None or request.layout is None:
        return torch.full((rows,), float(rows), device=embedded.device)
    keys = [segment.prefix + segment.queries for segment in request.layout.segments]
    queries = [segment.queries for segment in request.layout.segments]
    counts = torch.tensor(queries, device=embedded.device)
    return torch.tensor(keys, dtype=torch.float32, device=embedded.device).repeat_interleave(counts)
