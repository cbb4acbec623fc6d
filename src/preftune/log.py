"""Messages of preftune during its work: plain lines on stderr through the logger "preftune"."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from preftune.secret_values import hidden

_LOGGER = logging.getLogger("preftune")
_NOTES: deque[str] = deque(maxlen=200)


_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """Untrusted text, made safe for a terminal: without escape sequences, control and bidi characters."""
    return _CONTROL.sub("", text)


def say(line: str) -> None:
    """Prints a fact or advice for the user; once per job, not once per rank."""
    _emit(logging.INFO, line)


def warn(line: str) -> None:
    """Like `say`, for warnings."""
    _emit(logging.WARNING, line)


def detail(line: str) -> None:
    """Like `say`, for notes that need no action: run.json keeps them, and the terminal shows them with `--verbose`.

    In Python: `logging.getLogger("preftune").setLevel("DEBUG")`.
    """
    _emit(logging.DEBUG, line)


def show_details(shown: bool) -> None:
    """Sets whether the terminal shows the notes of `detail`."""
    _LOGGER.setLevel(logging.DEBUG if shown else logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context, only warnings are shown, and no note is kept."""
    level, notes = _LOGGER.level, list(_NOTES)
    _LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
        _NOTES.clear()
        _NOTES.extend(notes)


def take_notes() -> list[str]:
    """The notes since the last call, shown or not; for run.json."""
    taken = list(_NOTES)
    _NOTES.clear()
    return taken


def _emit(level: int, line: str) -> None:
    _set_up()
    if os.environ.get("RANK", "0") == "0":
        text = printable(hidden(line))
        _NOTES.append(text)
        _LOGGER.log(level, text)


def _set_up() -> None:
    """Adds preftune's own handler unless the application has configured logging; done once, on first use."""
    if _LOGGER.level == logging.NOTSET:
        _LOGGER.setLevel(logging.INFO)
    if not _LOGGER.handlers and not logging.getLogger().handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("preftune: %(message)s"))
        _LOGGER.addHandler(handler)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current stderr, so that a redirected or captured stderr is respected."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
