"""Messages of the command line: errors in one paragraph on standard error, and what a stop leaves."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from preftune.errors import PreftuneError, sentence
from preftune.log import printable
from preftune.secret_values import hidden

_LONGEST = 1200
"""Characters of another library's error message that are shown; --traceback shows the rest."""


def paragraph(error: Exception) -> str:
    """The text of an error for a user: preftune's own messages unchanged, other errors with their type."""
    message = " ".join(str(error).split())
    if isinstance(error, PreftuneError):
        return f"preftune: {message or type(error).__name__}"
    if len(message) > _LONGEST:
        message = message[:_LONGEST] + " ..."
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"preftune: {error.strerror}{where}. Check the path, its permissions and the space on the disk."
    return f"preftune: {type(error).__name__}: {sentence(message)} Run again with --traceback to see where it happened."


def until_stopped(folder: Path, kept: str, work: Callable[[], None]) -> int:
    """Runs work that writes to a folder and can be continued.

    Args:
        kept: the sentence for a stop: what the folder keeps, and how to continue.
    Returns: the exit code: 0, or that of the signal.
    Raises: KeyboardInterrupt with the sentence; RequestError if another process writes to the folder.
    """
    from preftune.storage.run_lock import locked
    from preftune.training.record.stopping import StoppedError, StopSignals

    try:
        with locked(folder, another="-o FOLDER"), StopSignals().caught(ctrl_c=False):
            work()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept) from None
    except StoppedError as stop:
        echo(kept)
        return stop.exit_code
    return 0


def tell(text: str, *, flush: bool = False) -> None:
    """Prints lines of a result to standard output, without control characters: names of files and models may have
    some.
    """
    print(printable(text), flush=flush)


def echo(text: str) -> None:
    """Prints one paragraph to standard error: wrapped on a terminal, one line in a log; without control characters."""
    text = printable(text)
    if sys.stderr.isatty():
        width = max(40, shutil.get_terminal_size().columns)
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(hidden(text), file=sys.stderr, flush=True)
