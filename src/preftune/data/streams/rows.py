"""Raw rows of a stream, pass after pass, shuffled in a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from preftune.data.formats.adapter import Row
from preftune.data.pairs.checks import HEAD
from preftune.errors import DatasetError

Pass = Callable[[int], Iterable[Row]]
"""Starts a pass over the rows, by its number."""


def passes_of(start: Callable[[], Iterable[Row]]) -> Pass:
    """Passes over the rows that `start` begins to read."""

    def begin(number: int) -> Iterable[Row]:
        rows = start()
        shuffled_by_user: Any = getattr(rows, "set_epoch", None)  # a stream of `datasets`
        if shuffled_by_user is not None:
            shuffled_by_user(number)
        return rows

    return begin


def first_rows(begin: Pass, name: str) -> list[Row]:
    """The rows by which a stream is recognised. Raises: DatasetError, if there are none."""
    found = list(islice(begin(0), HEAD))
    if not found:
        raise DatasetError(f"{name} has no rows. Give at least one.")
    return found


def shuffled(rows: Iterable[Row], size: int, *, seed: int, number: int) -> Iterator[tuple[int, Row]]:
    """Every row once, with its place in the data, drawn from a buffer that the data refill.

    Args:
        size: rows in the buffer; with 0 or 1 the order stays.
        seed: together with the number of the pass it decides the order.
    """
    entries = enumerate(rows)
    if size < 2:
        yield from entries
        return
    draw = random.Random(f"{seed} {number}")
    buffer = list(islice(entries, size))
    if len(buffer) == size:
        for entry in entries:
            place = draw.randrange(size)
            yield buffer[place]
            buffer[place] = entry
    draw.shuffle(buffer)
    yield from buffer
