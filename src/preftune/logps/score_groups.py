"""Scores groups together within a budget of tokens, which is halved when memory runs out.

Nothing is kept for a backward pass, so earlier scores remain valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from preftune.amounts import counted
from preftune.errors import OutOfMemoryError
from preftune.log import say
from preftune.types import TokenizedGroup

Result = TypeVar("Result")

_TOKENS = {"cpu": 2048}
_TOKENS_ELSEWHERE = 16_384


class ScoringBudget:
    """The maximum number of tokens scored together on a device.

    Args:
        device: type of the device.
        advice: the change that helps if a single group does not fit: the end of the error message.
    """

    def __init__(self, device: str, *, advice: str) -> None:
        self.tokens = _TOKENS.get(device, _TOKENS_ELSEWHERE)
        self._advice = advice

    def score(
        self, groups: Sequence[TokenizedGroup], score: Callable[[Sequence[TokenizedGroup]], Sequence[Result]]
    ) -> list[Result]:
        """A result for each group, in order. The longest groups are scored first, so that a lack of memory shows early.

        Args:
            score: scores some groups together.
        Raises: OutOfMemoryError if a single group does not fit.
        """
        found: dict[int, Result] = {}
        for batch in self.batches(groups):
            found |= zip(batch, self._compute([groups[place] for place in batch], score), strict=True)
        return [found[place] for place in range(len(groups))]

    def batches(self, groups: Sequence[TokenizedGroup]) -> Iterator[list[int]]:
        """Batches of positions of groups within the budget; a larger group is alone."""
        batch: list[int] = []
        tokens = 0
        for place in sorted(range(len(groups)), key=lambda place: -groups[place].tokens):
            if batch and tokens + groups[place].tokens > self.tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(place)
            tokens += groups[place].tokens
        if batch:
            yield batch

    def _compute(
        self, groups: Sequence[TokenizedGroup], score: Callable[[Sequence[TokenizedGroup]], Sequence[Result]]
    ) -> list[Result]:
        try:
            return list(score(groups))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(groups) == 1:
                raise OutOfMemoryError(
                    f"the device ran out of memory while scoring {counted(groups[0].tokens, 'token')} of one row. "
                    f"{self._advice}"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tokens = sum(group.tokens for group in groups) // 2
        say(f"out of memory: from now on at most {counted(self.tokens, 'token is', 'tokens are')} scored together.")
        return self.score(groups, score)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means a lack of memory: CUDA has a class, its libraries and other backends only messages."""
    known = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in known)
    )
