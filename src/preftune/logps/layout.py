"""Planning of packed rows: integer computations on the CPU, once per batch (in the collator).

row        [ P  C1  C2 .. CK | P' C1' C2' .. ]        groups end to end, no padding
positions    0.. |P| ..  |P| ..  |P| ..   0..         every completion restarts after its prompt
segments   queries P+C1 over keys P+C1;  queries Ci over keys P+Ci   (i > 1), each causal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from preftune.types import TokenizedGroup


class Segment(NamedTuple):
    """Queries `start:stop` of the row, which see the shared prompt `prefix_start:prefix_stop` and themselves."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def prefix(self) -> int:
        """Number of keys before the first query; 0 for a segment that contains its prompt."""
        return self.prefix_stop - self.prefix_start

    def seen(self, tensor: Tensor) -> Tensor:
        """(..., keys, d) of (..., R, d): the keys that the segment's last query sees, the prompt first."""
        own = tensor[..., self.start : self.stop, :]
        return own if self.prefix == 0 else torch.cat([tensor[..., self.prefix_start : self.prefix_stop, :], own], -2)


@dataclass(frozen=True)
class GroupLayout:
    """The visible keys of each query in a packed row. It passes as a keyword argument through the model to the
    attention function.

    `cu_seq_q` and `cu_seq_k` are the (segments + 1,) int32 boundaries that variable-length kernels read, `key_index`
    the (keys,) int64 gather that repeats each shared prompt for every further completion.
    """

    segments: tuple[Segment, ...]
    cu_seq_q: Tensor
    cu_seq_k: Tensor
    key_index: Tensor
    max_q: int
    max_k: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroupLayout:
        names = ("cu_seq_q", "cu_seq_k", "key_index")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """(queries, keys) bool, True where a key is visible; None if this equals plain causal attention.

        Masks are made once per layout, not once per layer.
        """
        keys = segment.prefix + segment.queries
        if window is not None and window >= keys:
            window = None
        if window is None and segment.prefix == 0:
            return None
        cache: dict[object, Tensor] = self.__dict__.setdefault("_masks", {})
        key = (segment.queries, keys, window, device)
        if key not in cache:
            query_at = torch.arange(segment.prefix, keys, device=device)[:, None]
            distance = query_at - torch.arange(keys, device=device)[None, :]
            allowed = distance >= 0
            cache[key] = allowed if window is None else allowed & (distance < window)
        return cache[key]


def segments_of(groups: Sequence[TokenizedGroup]) -> tuple[Segment, ...]:
    """The attention segments of concatenated groups, in the order of the row."""
    segments: list[Segment] = []
    offset = 0
    for group in groups:
        prompt, start = offset + len(group.prompt_ids), offset
        for index, completion in enumerate(group.completions):
            stop = (start if index else prompt) + len(completion)
            segments.append(Segment(start, stop, offset, prompt if index else offset))
            start = stop
        offset = start
    return tuple(segments)


def plan_layout(groups: Sequence[TokenizedGroup]) -> GroupLayout:
    """Segments, and the same facts as tensors for variable-length kernels (on the CPU; move with `.to`)."""
    segments = segments_of(groups)
    queries = [s.queries for s in segments]
    keys = [s.prefix + s.queries for s in segments]
    key_index: list[int] = []
    for s in segments:
        key_index.extend(range(s.prefix_start, s.prefix_stop))
        key_index.extend(range(s.start, s.stop))
    return GroupLayout(
        segments=segments,
        cu_seq_q=_boundaries(queries),
        cu_seq_k=_boundaries(keys),
        key_index=torch.tensor(key_index, dtype=torch.int64),
        max_q=max(queries),
        max_k=max(keys),
    )


def _boundaries(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
