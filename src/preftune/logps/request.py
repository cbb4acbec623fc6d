"""The request of a scoring forward to the hooks in the model.

The forward of a model wrapped by DDP or FSDP must contain trunk *and* head, or gradients are not synchronised. So the
head is computed inside it, by hooks on the head module that read here what to score; the mask function reads here that
it is in a packed forward. Neither is recomputed by gradient checkpointing. (The layout, which is needed inside
checkpointed layers, is passed as a keyword argument instead.)"""

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
    """What to score in one forward pass, and the place of the results."""

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
    """Whether `square_T` is requested."""
    square_T: Tensor | None = None
    """(T,) log of the sum of all tokens' squared probabilities."""
    entropy: bool = False
    """Whether `entropy_T` is requested."""
    entropy_T: Tensor | None = None
    """(T,) entropy of the distribution of each token, nats."""
    hidden: Tensor | None = None
    length: int = 0
    """Number of tokens of the single sequence in a forward without layout; its states are the last ones."""


_current: ContextVar[ScoringRequest | None] = ContextVar("preftune_scoring_request", default=None)


def current_request() -> ScoringRequest | None:
    """The request of the current forward pass of this thread, if any."""
    return _current.get()


@contextmanager
def scoring(request: ScoringRequest) -> Iterator[ScoringRequest]:
    """Makes `request` the current one for the duration of a forward pass."""
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)
