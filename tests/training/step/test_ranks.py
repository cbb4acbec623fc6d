"""What ranks tell each other, on a process group of one: the arithmetic, and what ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from preftune.errors import OutOfMemoryError
from preftune.training.step import ranks
from preftune.training.step.ranks import FAILED, add_gradients, agree


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of this process only, whose all-reduce says what it was told."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]
    for index, parameter in enumerate(made):
        parameter.grad = torch.arange(parameter.numel(), dtype=dtype) + index
    return made


@pytest.mark.parametrize("bucket_mb", [0, 1])
def test_gradients_of_any_shape_and_dtype_come_back_in_their_places(bucket_mb, alone):
    """Two ranks with the same gradients: this one's sum is half of the mean, as the other's half is missing."""
    mixed = [*parameters(3, 2), *parameters(4, dtype=torch.bfloat16), *parameters(300_000, 5)]
    mixed[0].grad = torch.arange(6.0).view(2, 3).t()[:3, 0]  # not contiguous
    expected = [p.grad.clone() / 2 for p in mixed]
    add_gradients(mixed, divided_by=2, bucket_mb=bucket_mb)
    for parameter, gradient in zip(mixed, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
        assert parameter.grad.dtype == gradient.dtype


def test_a_bucket_is_bounded_and_holds_one_dtype():
    gradients = [torch.zeros(size, dtype=t) for size in (3, 3, 9, 1) for t in (torch.float32, torch.bfloat16)]
    buckets = list(ranks._buckets(gradients, 24))
    assert sorted(id(g) for bucket in buckets for g in bucket) == sorted(map(id, gradients))
    for bucket in buckets:
        assert len({g.dtype for g in bucket}) == 1
        assert len(bucket) == 1 or sum(g.nbytes for g in bucket) <= 24
    assert any(len(bucket) > 1 for bucket in buckets)


def test_limits_and_missing_gradients_are_exchanged(alone):
    mine = parameters(2, 3)
    mine[1].grad = None
    assert agree(mine, None) == (None, mine[:1])
    assert agree(mine, 70)[0] == 70


def test_a_gradient_that_only_another_rank_has_is_zero_here(alone, monkeypatch):
    mine = parameters(2, 3)
    mine[1].grad = None

    def everybody_has_them(said: torch.Tensor, op: Any) -> None:
        said[1:] = 1
        said[0] = torch.maximum(said[0], torch.tensor(-40))

    monkeypatch.setattr(dist, "all_reduce", everybody_has_them)
    assert agree(mine, 70) == (40, mine)
    assert torch.equal(mine[1].grad, torch.zeros(3))


def test_a_rank_that_cannot_go_on_ends_all_of_them(alone, monkeypatch):
    mine = parameters(2)
    agree(mine, FAILED)  # the one that failed has its own error to raise
    monkeypatch.setattr(dist, "all_reduce", lambda said, op: said.fill_(0))
    with pytest.raises(OutOfMemoryError, match="another process"):
        agree(mine, None)
