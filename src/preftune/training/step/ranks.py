"""What ranks exchange in an optimiser step: their token limits and their gradients.

DistributedDataParallel would average gradients during the backward pass of a step's last micro-batch, and the other
ranks would wait forever if one of them had to repeat the step. Here they are averaged when all ranks have theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from preftune.errors import OutOfMemoryError

FAILED = 0
"""In place of a limit: a single pair does not fit."""

BUCKET_MB = 64
"""Size of the gradients that are averaged at a time without `ddp_bucket_cap_mb`, in MB of 2^20 bytes. The copy takes as
much memory again."""

_NO_LIMIT = 2**62


def agree(parameters: Sequence[nn.Parameter], tokens: int | None) -> tuple[int | None, list[nn.Parameter]]:
    """Exchange the token limits and the presence of gradients at the end of a step. A parameter may have a gradient on
    some ranks only (an expert that got no token on the others); the others get a gradient of zero.

    Args:
        tokens: this rank's limit; None for no limit, FAILED if it cannot continue.
    Returns: the smallest limit of all ranks, None for no limit; and the parameters that have a gradient on any rank.
    Raises:
        OutOfMemoryError: another rank cannot continue.
    """
    mine = _NO_LIMIT if tokens is None else tokens
    said = torch.tensor([-mine, *(p.grad is not None for p in parameters)], device=parameters[0].device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    least, *present = said.tolist()
    if least == FAILED and tokens != FAILED:
        raise OutOfMemoryError(
            "another process ran out of memory on a single pair, and the step cannot be computed without it. Its "
            "message names the fixes."
        )
    together = [p for p, some in zip(parameters, present, strict=True) if some]
    for parameter in together:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return None if -least == _NO_LIMIT else -least, together


def add_gradients(parameters: Sequence[nn.Parameter], *, divided_by: int, bucket_mb: int = BUCKET_MB) -> None:
    """Replace every gradient by its sum over the ranks, divided by `divided_by`, in buckets of bounded size.

    Args:
        parameters: in the same order on all ranks, all of them with a gradient.
        divided_by: 1 for the sum, the number of ranks for the mean.
        bucket_mb: size of a bucket, in MB of 2^20 bytes; a larger gradient gets a bucket of its own.
    """
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None], bucket_mb * 2**20):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0].div_(divided_by))
            continue
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(divided_by)
        dist.all_reduce(flat)
        for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Buckets of gradients of one dtype, up to `most` bytes each; a larger gradient is alone in its bucket."""
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        bucket: list[Tensor] = []
        for gradient in gradients:
            if gradient.dtype != dtype:
                continue
            if bucket and sum(g.nbytes for g in bucket) + gradient.nbytes > most:
                yield bucket
                bucket = []
            bucket.append(gradient)
        yield bucket
