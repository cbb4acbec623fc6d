"""Spans of tokens as a flat, ascending list of their edges: begin and end of each span. This fits in a table's cell."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.types import Span


def after(start: int, edges: Sequence[int]) -> list[int]:
    """The parts of the spans after the first `start` tokens, counted from there; adjacent spans are joined."""
    kept: list[int] = []
    for begin, end in pairs(edges):
        begin, end = max(0, begin - start), max(0, end - start)
        if kept and kept[-1] == begin:
            kept[-1] = end
        elif begin < end:
            kept += [begin, end]
    return kept


def within(length: int, edges: Sequence[int]) -> list[int]:
    """The parts of the spans within the first `length` tokens."""
    return [min(edge, length) for begin, end in pairs(edges) if begin < length for edge in (begin, end)]


def pairs(edges: Sequence[int]) -> tuple[Span, ...]:
    """The spans as (begin, end)."""
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def common(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the common beginning."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:  # nearly always, and at the speed of C
        return limit
    return next(i for i in range(limit) if left[i] != right[i])
