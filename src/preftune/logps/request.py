"""The request that a scoring forward makes of the model it runs through.

The forward of a model wrapped by DDP or FSDP must contain trunk *and* head, or gradients are not synchronised. So the
head is computed inside it, by hooks on the head module that look here for what to score; the mask function looks here
to learn that it is in a packed forward. Neither is recomputed by gradient checkpointing. (The layout, which is needed
inside checkpointed layers, travels as a keyword argument instead.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from preftune.logps.head import LogitTransform

if TYPE_CHECKING:
    from preftune.logps.layout import GroupLayout


@dataclass
class ScoringRequest:
    """What to score in one forward pass, and where the answer is put."""

    predict_T: Tensor
    """(T,) indices of the predicting states in the flattened (batch x length) hidden states."""
    target_T: Tensor
    layout: GroupLayout | None
    transform: LogitTransform
    chunk: int | None = None
    attention_calls: int = 0
    token_logps_T: Tensor | None = None
    hit_T: Tensor | None = None
    """(T,) bool: whether each token was the likeliest."""
    squares: bool = False
    """Whether `square_T` is asked for."""
    square_T: Tensor | None = None
    """(T,) log of the sum of all tokens' squared probabilities."""
    hidden: Tensor | None = None
    length: int = 0
    """Tokens of the one sequence of a forward without layout; its states are the last ones."""


_current: ContextVar[ScoringRequest | None] = ContextVar("preftune_scoring_request", default=None)


def current_request() -> ScoringRequest | None:
    """The request of the forward pass this thread is in, if any."""
    return _current.get()


@contextmanager
def scoring(request: ScoringRequest) -> Iterator[ScoringRequest]:
    """Make `request` the current one for the duration of a forward pass."""
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)
