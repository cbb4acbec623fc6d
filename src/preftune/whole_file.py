"""Small files that are whole under their name or not there: written beside it, synced, renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one step: a reader sees the old one or the new one, never half of it.

    The folder is made if it is not there. Raises: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def umask() -> int:
    """What new files are not allowed; asking means setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
