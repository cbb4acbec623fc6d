"""The folder of caches: converted models, reference scores and other results that can be computed again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def make_private(folder: Path) -> None:
    """Creates a folder, and the cache folder around it, readable only by its owner; an existing folder keeps its
    permissions.

    Raises: OSError.
    """
    root = cache_folder()
    if folder.is_relative_to(root) and not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def cache_folder() -> Path:
    """`$PREFTUNE_CACHE`, or `preftune` in the user's cache folder. The first writer creates it."""
    if explicit := os.environ.get("PREFTUNE_CACHE"):
        return Path(explicit).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "preftune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "preftune" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"
