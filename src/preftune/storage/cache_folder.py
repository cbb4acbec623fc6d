"""Where preftune keeps what it may compute again: converted models and reference scores."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def make_private(folder: Path) -> None:
    """Make a folder, and the cache folder around it readable for its owner alone; one that is there keeps its rights.

    Raises: OSError.
    """
    root = cache_folder()
    if folder.is_relative_to(root) and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def cache_folder() -> Path:
    """`$PREFTUNE_CACHE`, or `preftune` in the user's cache folder. Not created here: the first writer does that."""
    if explicit := os.environ.get("PREFTUNE_CACHE"):
        return Path(explicit).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "preftune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "preftune" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"
