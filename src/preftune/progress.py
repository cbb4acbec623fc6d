"""The progress of a long job: a bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from preftune.log import say

_LINE_EVERY_S = 30.0


class Counting:
    """A context manager; call it with the number done and the total. Nothing is shown for short jobs."""

    def __init__(self, what: str, *, unit: str) -> None:
        self._what = what
        self._unit = unit
        self._bar: Any = None
        self._began = self._last_line = 0.0
        self._first: int | None = None

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:  # the work may begin long after this was made
            self._began = self._last_line = time.monotonic()
            self._first = done
        first = self._first
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, initial=done, desc=self._what, unit=f" {self._unit}", leave=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if done < total and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            left = (now - self._began) / max(1, done - first) * (total - done)
            say(f"{self._what}: {done:,} of {total:,} {self._unit}, about {_duration(left)} left")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
