"""What runs on a worker of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from preftune.errors import PreftuneError
from preftune.version import __version__
from preftune.workers.team import Build


class Done(NamedTuple):
    """What a worker made of a block."""

    result: Any
    failed: str | None
    """The class of the PreftuneError whose message is the result; None without an error."""
    warnings: list[str]
    """Warnings since the last block."""


def enter(folder: str, environment: Mapping[str, str]) -> None:
    """Gives this process the place and the variables of the caller.

    Args:
        folder: its working directory, entered where it exists, for relative paths.
        environment: its variables (`ray_pool.passed_on`).
    """
    os.environ.update(environment)
    if os.path.isdir(folder):
        os.chdir(folder)


class Actor:
    """One worker."""

    def __init__(self, build: Build, folder: str, environment: Mapping[str, str]) -> None:
        """
        Args:
            folder, environment: of `enter`.
        """
        enter(folder, environment)
        self._build = build
        self._work: Callable[[Any], Any] | None = None
        self._warnings: list[str] = []

    def prepare(self) -> Done:
        """Does the preparation. The result is the version of preftune."""
        _Kept(self._warnings).listen()

        def version() -> str:
            self._work = self._build()
            return __version__

        return self._done(version)

    def compute(self, block: Any) -> Done:
        """The result of a block."""
        assert self._work is not None
        return self._done(partial(self._work, block))

    def _done(self, work: Callable[[], Any]) -> Done:
        try:
            result, failed = work(), None
        except PreftuneError as error:  # by name, because not every exception can be pickled
            result, failed = str(error), type(error).__name__
        warnings, self._warnings[:] = list(self._warnings), []
        return Done(result, failed, warnings)


class _Kept(logging.Handler):
    """Keeps warnings for the driver."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def listen(self) -> None:
        logging.getLogger("preftune").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())
