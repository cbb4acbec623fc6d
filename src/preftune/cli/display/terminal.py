"""The console that commands print their results on."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(**options: Any) -> Console:
    """A console as wide as the terminal is now; rich would keep the environment of its import.

    Args:
        options: options of `rich.console.Console`.
    """
    from rich.console import Console

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return Console(width=width, **options)
