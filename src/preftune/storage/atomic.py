"""Files that are whole under their name or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED_S = 3600.0
"""Seconds after which a temporary file has no writer."""


def temporary_beside(path: Path) -> Path:
    """An empty new file in the folder of `path`, which is made if it is not there; the umask applies to its mode.

    (`tempfile` makes private files only, and reading the umask means changing it for every thread.)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            with naming(path):
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return temporary


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file in one step: a reader sees the old one or the new one, never half of it.

    The folder is made if it is not there. Raises: OSError.
    """
    temporary = temporary_beside(path)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with naming(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error inside names this file: a temporary name means nothing to a user, and a full disk gives no name."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def sweep_beside(path: Path) -> None:
    """Remove what writers of a file that were killed left behind, once no writer can be alive."""
    sweep(path.parent, f".{glob.escape(path.name)}-*")


def sweep(folder: Path, pattern: str = ".writing-*") -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for temporary in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > ABANDONED_S:
                temporary.unlink()


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the content of a file or the names in a folder are on the disk, where the system can say so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
