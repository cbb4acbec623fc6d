"""The address of one completion."""

from __future__ import annotations

from collections.abc import Sequence

from preftune.reference import completion_keys
from preftune.types import Span


def completion_key(prompt_ids: Sequence[int], completion_ids: Sequence[int], spans: Sequence[Span] = ()) -> bytes:
    return completion_keys(prompt_ids, (completion_ids,), (spans,))[0]
