"""One run at a time in a run directory. The system releases the lock when the process ends, however it ends."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preftune.errors import RequestError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "_running.lock"
"""The hub upload leaves out names that begin with "_"."""

_held: dict[str, int] = {}
"""Folders that this process has locked, and how often: a command and the trainer in it both ask."""


@contextmanager
def locked(folder: str | os.PathLike[str], *, writes: bool = True) -> Iterator[None]:
    """Holds the folder for this process.

    Args:
        writes: False for a process that leaves the run directory to another one (ranks other than the first).
    Raises:
        RequestError: another process holds it.
    """
    path = Path(folder).resolve() / FILE
    if not writes or fcntl is None:
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
    descriptor = _acquire(path)
    _held[key] = 1
    try:
        yield
    finally:
        del _held[key]
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RequestError(
                f"another run{holder} is writing in {path.parent}. Wait until it has ended, or name another folder: "
                "--output_dir FOLDER."
            ) from None
        except OSError:  # a file system without locks
            return descriptor
        if _is(path, descriptor):
            os.truncate(descriptor, 0)
            os.write(descriptor, json.dumps({"process": os.getpid(), "machine": platform.node()}).encode())
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
