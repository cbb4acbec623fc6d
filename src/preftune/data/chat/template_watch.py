"""A limit on the time and the memory that one rendering of a chat template may take.

A template is a program of the model's author, and loops in it can run for hours. Jinja has no way to stop a rendering,
so a thread checks the running ones every twentieth of a second, and raises `TemplateLimitError` in the thread of a
rendering that exceeds its limit. Ordinary renderings take a thousandth of a second and are never checked."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.bounds import bound, raising, size
from preftune.errors import TemplateLimitError

_EVERY = 0.05
_LEAST = 1.0
"""Seconds after which growth of memory is attributed to a rendering."""

_STATM = Path("/proc/self/statm")
_PAGE = 4096


class _Watch:
    """The running renderings, by thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[int, tuple[float, int]] = {}
        self._over: set[int] = set()
        self._thread: threading.Thread | None = None

    def begin(self) -> int:
        thread = threading.get_ident()
        with self._lock:
            self._begun[thread] = (time.monotonic(), _resident())
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="preftune-templates", daemon=True)
                self._thread.start()
        return thread

    def end(self, thread: int) -> bool:
        """Ends the watch; returns whether the rendering was stopped."""
        with self._lock:
            self._begun.pop(thread, None)
            stopped = thread in self._over
            self._over.discard(thread)
            return stopped

    def _look(self) -> None:
        idle = time.monotonic()
        while time.monotonic() - idle < 5:
            time.sleep(_EVERY)
            with self._lock:
                now = time.monotonic()
                for thread, (begun, resident) in self._begun.items():
                    taken = now - begun
                    grown = taken > _LEAST and _resident() - resident > bound("template_memory")
                    if thread not in self._over and (grown or taken > bound("template_seconds")):
                        self._over.add(thread)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(TemplateLimitError)
                        )
                if self._begun:
                    idle = now


_WATCH = _Watch()


@contextmanager
def watched() -> Iterator[None]:
    """Raises: TemplateLimitError, if the body takes too long or too much memory."""
    thread = _WATCH.begin()
    stopped = False
    try:
        yield
    except Exception as error:
        stopped = _WATCH.end(thread)
        if stopped:
            seconds, memory = bound("template_seconds"), size(bound("template_memory"))
            raise TemplateLimitError(
                f"The chat template took more than {seconds:g} seconds or {memory} for one conversation, and was "
                f"stopped. Use another template; {raising('template_seconds', '600')}, "
                f"{raising('template_memory', '8GB')}."
            ) from error
        raise
    finally:
        if not stopped:
            _WATCH.end(thread)


def _resident() -> int:
    """Resident memory of the process in bytes; 0 if that is unknown."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
