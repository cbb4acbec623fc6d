"""Locks for folders and files, so that one process at a time writes to them. The system releases a lock when its
process ends.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preftune.errors import RequestError
from preftune.storage.atomic import naming
from preftune.storage.jsonl import prepare_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "_running.lock"
"""The hub upload leaves out names that begin with "_"."""

_held: dict[str, int] = {}
"""Paths that this process has locked, and how often: a command and its trainer both take the lock."""


@contextmanager
def locked(
    folder: str | os.PathLike[str], *, writes: bool = True, another: str = "--output_dir FOLDER"
) -> Iterator[None]:
    """Locks the folder for this process. A folder that is created for the lock and stays empty is removed.

    Args:
        writes: False for a process that does not write to the run directory (ranks other than the first).
        another: the option that names another folder, for the message.
    Raises:
        RequestError: another process holds the lock, or the folder cannot be written to.
    """
    place = Path(folder).resolve()
    if not writes:
        yield
        return
    with _held_by_us(place / FILE, place, f"folder: {another}"):
        yield


def writer_of(folder: Path) -> str | None:
    """Which other process is writing to a folder: "process 12 on laptop", or "another process" if it does not say.

    Returns: None if no other process holds its lock, or if that cannot be known.
    """
    path = folder.resolve() / FILE
    if fcntl is None or str(path) in _held:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor).strip(" ()") or "another process"
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


@contextmanager
def locked_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Locks the file that `-o` names, with a lock file next to it. Raises: as `locked`."""
    place = Path(path).resolve()
    with _held_by_us(place.with_name(f"_{place.name}.lock"), place, "file: -o FILE"):
        yield


@contextmanager
def _held_by_us(path: Path, place: Path, another: str) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    key = str(path)
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    made = not path.parent.exists()
    descriptor = _acquire(path, place, another)
    _held[key] = 1
    try:
        yield
    finally:
        del _held[key]
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):
                path.parent.rmdir()


def _acquire(path: Path, place: Path, another: str) -> int:
    while True:
        prepare_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RequestError(
                f"another run{holder} is writing to {place}. Wait until it has ended, or name another {another}."
            ) from None
        except OSError:  # a file system without locks
            return descriptor
        if _is(path, descriptor):
            try:
                with naming(place):  # a full disk gives no name
                    os.truncate(descriptor, 0)
                    os.write(descriptor, json.dumps({"process": os.getpid(), "machine": platform.node()}).encode())
            except OSError:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            return descriptor
        os.close(descriptor)  # released and removed by its holder between the two calls


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 1000, 0))
        return f" (process {facts['process']} on {facts['machine']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
