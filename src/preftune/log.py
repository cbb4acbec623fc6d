"""What preftune says while it works: plain lines on stderr through the logger "preftune"."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque

from preftune.secret_values import hidden

_LOGGER = logging.getLogger("preftune")
_NOTES: deque[str] = deque(maxlen=200)


_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """Text of unknown origin as a terminal may be given it: without escape sequences, control and bidi characters."""
    return _CONTROL.sub("", text)


def say(line: str) -> None:
    """A fact or an advice for the person at the terminal; once per job, not once per rank."""
    _tell(logging.INFO, line)


def warn(line: str) -> None:
    """Like `say`, for what should not be overlooked."""
    _tell(logging.WARNING, line)


def detail(line: str) -> None:
    """Like `say`, for what needs no action: run.json keeps it, and the terminal shows it with `--verbose`.

    In Python: `logging.getLogger("preftune").setLevel("DEBUG")`.
    """
    _tell(logging.DEBUG, line)


def show_details(shown: bool) -> None:
    """Whether the terminal gets what `detail` is given."""
    _LOGGER.setLevel(logging.DEBUG if shown else logging.INFO)


def take_notes() -> list[str]:
    """Notes since the last call, shown or not; for run.json."""
    taken = list(_NOTES)
    _NOTES.clear()
    return taken


def _tell(level: int, line: str) -> None:
    _set_up()
    if os.environ.get("RANK", "0") == "0":
        text = printable(hidden(line))
        _NOTES.append(text)
        _LOGGER.log(level, text)


def _set_up() -> None:
    """A handler of our own unless the application has configured logging; done once, on first use."""
    if _LOGGER.level == logging.NOTSET:
        _LOGGER.setLevel(logging.INFO)
    if not _LOGGER.handlers and not logging.getLogger().handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("preftune: %(message)s"))
        _LOGGER.addHandler(handler)


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever stderr is now, so that a redirected or captured stderr is honoured."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
