"""Files and folders that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ABANDONED_S = 3600.0
"""Age in seconds from which a temporary file has no writer."""


def temporary_beside(path: Path) -> Path:
    """Creates an empty file in the folder of `path`, which is created if necessary; the umask applies to its mode.

    (`tempfile` makes only private files, and reading the umask would change it for every thread.)
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
    """Replaces a file in one step: a reader sees the old or the new file, never a part.

    The folder is created if necessary. Raises: OSError.
    """
    with staged(path, data):
        pass


@contextlib.contextmanager
def staged(path: Path, data: bytes) -> Iterator[None]:
    """Writes a file that replaces `path` when the body has succeeded: of files that belong together, all are complete
    before the first is replaced.

    Raises: OSError.
    """
    temporary = temporary_beside(path)
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
        with naming(path):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: Path, *, kept: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """An empty folder under a temporary name, which becomes `folder` if the body succeeds, and is removed otherwise.

    Args:
        kept: whether a folder that is there by then, written by another process, is kept instead; one that is not is
            replaced. Without it only an empty folder is replaced.
    Raises: OSError.
    """
    sweep_beside(folder)
    partial = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    with naming(folder):
        partial.mkdir(parents=True)
    try:
        yield partial
        with contextlib.suppress(OSError):  # Windows replaces no folder, not even an empty one
            folder.rmdir()
        try:
            with naming(folder):
                os.rename(partial, folder)
        except OSError:
            if kept is None:
                raise
            if not kept(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an error in the body name this file: a temporary name does not help a user, and a full disk gives no
    name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def sweep_beside(path: Path) -> None:
    """Removes what killed writers of a file or folder left next to it, once no writer can be alive."""
    sweep(path.parent, f".{glob.escape(path.name)}-{'[0-9a-f]' * 8}")


def sweep(folder: Path, pattern: str = ".writing-*") -> None:
    """Removes the temporary files and folders that killed writers left in a folder."""
    for temporary in folder.glob(pattern):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.rglob("*")))
            if time.time() - newest <= ABANDONED_S:
                continue
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink()


def sha256_of(path: Path) -> str:
    """The digest of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the content of a file or the names in a folder are on the disk, if the system supports it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
