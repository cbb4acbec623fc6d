"""Batches encoded a little ahead: one is rendered in Python while the tokeniser, which is not Python, has another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from preftune.data.tokens.encode import Encoder
from preftune.data.tokens.encoded import Encoded
from preftune.types import Example

_THREADS = 2
"""More gain nothing: Python runs one of them at a time, and the tokeniser has its own threads."""

Batch = list[Example]


def encode_ahead(encoder: Encoder, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[Encoded]]]:
    """Every batch with its token ids, in order; at most three batches are held. Raises what `Encoder.encode` raises."""
    waiting: deque[tuple[Batch, Future[list[Encoded]]]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="preftune-encode") as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(encoder.encode, batch)))
            if len(waiting) > _THREADS:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
