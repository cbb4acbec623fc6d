"""Groups scored within a budget: the order is kept, memory that runs out costs time only, a group alone is an error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from preftune.errors import OutOfMemoryError
from preftune.logps.score_groups import ScoringBudget
from preftune.types import TokenizedGroup

ADVICE = "Use a smaller model."


def group(tokens: int) -> TokenizedGroup:
    return TokenizedGroup(prompt_ids=[1] * (tokens - 1), completions=([2],), pairs=())


class Device:
    """Counts tokens, and has room for some at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.calls: list[list[int]] = []

    def __call__(self, groups: Sequence[TokenizedGroup]) -> list[int]:
        tokens = [one.tokens for one in groups]
        if sum(tokens) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.calls.append(tokens)
        return tokens


def test_results_are_in_the_order_of_the_groups_and_the_longest_come_first() -> None:
    device, sizes = Device(10_000), [5, 900, 30, 1500, 700]
    assert ScoringBudget("cpu", advice=ADVICE).score([group(size) for size in sizes], device) == sizes
    assert device.calls == [[1500], [900, 700, 30, 5]]


def test_memory_that_runs_out_halves_the_budget_and_loses_nothing() -> None:
    budget, device = ScoringBudget("cpu", advice=ADVICE), Device(600)
    sizes = [300] * 12
    assert budget.score([group(size) for size in sizes], device) == sizes
    assert budget.tokens == 450, "1,800 tokens did not fit, nor did half of them"
    assert device.calls == [[300]] * 12


def test_a_group_that_does_not_fit_alone_is_an_error_with_the_advice() -> None:
    with pytest.raises(OutOfMemoryError, match=r"700 tokens of one row. Use a smaller model\."):
        ScoringBudget("cpu", advice=ADVICE).score([group(100), group(700)], Device(600))


def test_other_errors_are_raised_as_they_are() -> None:
    def broken(groups: Sequence[TokenizedGroup]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        ScoringBudget("cpu", advice=ADVICE).score([group(3), group(4)], broken)
    assert ScoringBudget("cpu", advice=ADVICE).score([], broken) == []
