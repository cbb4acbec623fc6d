"""The contents of the folder of reference scores: listed, pruned, verified. Only preftune's own files are changed."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from preftune.reference.store import MARK, unpack
from preftune.storage.key_value import SIDE_FILES, has_mark, opened, set_aside

State = Literal["store", "torn", "aside", "foreign"]
Removal = Literal["removed", "in use", "not ours", "failed"]

_NAME = re.compile(r"^[0-9a-f]{32}-\w+\.(sqlite|damaged-\d+)$")
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_HINDRANCES = (*_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


@dataclass(frozen=True, slots=True)
class StoreFile:
    """One file of the folder."""

    path: Path
    state: State
    """store: scores of one model and numerics. torn: a store that cannot be read. aside: a damaged store that a run set
    aside. foreign: not written by preftune.
    """
    size: int
    """Bytes, including the side files of SQLite."""
    last_used: float
    """Seconds since the epoch at which a run last opened or wrote it."""
    completions: int | None = None
    """Number of completions; None if unknown."""
    note: dict[str, str] = field(default_factory=dict)
    """The store's own description: model, reference, engine, device, dtype, created (seconds since the epoch),
    preftune.
    """

    @property
    def model(self) -> str:
        return self.note.get("model", "unknown")

    @property
    def name(self) -> str:
        return {"aside": "a damaged file that was set aside", "torn": "a damaged file"}.get(self.state, self.model)

    @property
    def id(self) -> str:
        """The beginning of the model's fingerprint."""
        return self.path.name[:8]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of `verify` for one store."""

    path: Path
    completions: int
    """Number of rows that could be read."""
    damaged: int
    """Number of these rows with a wrong checksum."""
    torn: str | None
    """SQLite's message about a file that is damaged as a whole, not only in single rows."""
    repaired: bool = False
    hindered: str | None = None
    """Why it could not be checked or repaired: another process uses it, or a permission is missing."""

    @property
    def sound(self) -> bool:
        return not self.damaged and self.torn is None


def list_stores(folder: Path) -> list[StoreFile]:
    """Every file of the folder with reference scores, the least recently used first. Raises: OSError."""
    if folder.is_dir():
        os.listdir(folder)  # patterns find nothing, and say nothing, where a folder cannot be read
    names = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    beside = {Path(f"{path}{suffix}") for path in names for suffix in SIDE_FILES}
    return sorted((_look(path) for path in names if path not in beside), key=lambda file: file.last_used)


def choose(
    files: Iterable[StoreFile],
    *,
    now: float,
    older_than: float | None = None,
    model: str | None = None,
    max_size: int | None = None,
) -> list[StoreFile]:
    """The own files that these conditions select for removal, the least recently used first.

    Args:
        older_than: only files that were last used this many seconds before `now`.
        model: only stores of models whose name contains this, in any case.
        max_size: remove files until the rest holds at most this many bytes; damaged files go first.
    """
    ours = [file for file in files if file.state != "foreign"]
    chosen = [
        file
        for file in ours
        if (older_than is None or now - file.last_used >= older_than)
        and (model is None or (file.state == "store" and model.lower() in file.model.lower()))
    ]
    if max_size is None:
        return chosen
    excess = sum(file.size for file in ours) - max_size
    going: list[StoreFile] = []
    for file in sorted(chosen, key=lambda file: (file.state in ("store", "kept"), file.last_used)):
        if excess <= 0:
            break
        going.append(file)
        excess -= file.size
    return going


def remove(file: StoreFile) -> Removal:
    """Deletes a file and the side files of SQLite, unless a process has it open or preftune did not write it."""
    if file.state == "foreign":
        return "not ours"
    try:
        if file.state == "aside":
            file.path.unlink()
            return "removed"
        with _alone(file.path):
            file.path.unlink()
            for suffix in SIDE_FILES:
                Path(f"{file.path}{suffix}").unlink(missing_ok=True)
    except _InUseError:
        return "in use"
    except _NotOursError:
        return "not ours"
    except OSError:
        return "failed"
    return "removed"


def verify(file: StoreFile, *, repair: bool = False) -> Check:
    """Checks a store's file as a whole and the checksum of every row.

    Args:
        repair: rows with a wrong checksum are deleted, a torn file is set aside; both are computed again when needed.
    """
    completions, damaged, torn = 0, [], None
    try:
        with opened(file.path) as connection:
            faults = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
            torn = None if faults == ["ok"] else "; ".join(faults)
            for key, value in connection.execute("SELECT key, value FROM scores"):
                completions += 1
                if not isinstance(key, bytes) or unpack(key, value) is None:
                    damaged.append(key)
            if repair and damaged and torn is None:
                with connection:
                    connection.executemany("DELETE FROM scores WHERE key = ?", [(key,) for key in damaged])
    except sqlite3.DatabaseError as error:
        if _hinders(error):
            return Check(file.path, completions, len(damaged), torn, hindered=str(error))
        torn = torn or str(error)
    if repair and torn is not None:
        try:
            with _alone(file.path, torn=True):
                set_aside(file.path)
        except (_InUseError, OSError) as error:
            return Check(file.path, completions, len(damaged), torn, hindered=str(error))
    return Check(file.path, completions, len(damaged), torn, repaired=repair and bool(damaged or torn))


class _InUseError(Exception):
    """Another process has the file open."""

    def __str__(self) -> str:
        return "another process has it open"


class _NotOursError(Exception):
    """The file's header has another program's mark, or no mark."""


def _look(path: Path) -> StoreFile:
    facts = []
    for part in (path, *(Path(f"{path}{suffix}") for suffix in SIDE_FILES)):
        with contextlib.suppress(OSError):  # a run that ends just now takes its side files with it
            facts.append(part.stat())
    size, last_used = sum(fact.st_size for fact in facts), max((fact.st_mtime for fact in facts), default=0.0)
    if not _NAME.match(path.name):
        return StoreFile(path, "foreign", size, last_used)
    aside = path.suffix != ".sqlite"
    try:
        with opened(path) as connection:
            if not has_mark(connection, MARK):
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                state: State = "foreign" if tables else "aside" if aside else "torn"
                return StoreFile(path, state, size, last_used)
            if aside:
                return StoreFile(path, "aside", size, last_used)
            (completions,) = connection.execute("SELECT count(*) FROM scores").fetchone()
            return StoreFile(path, "store", size, last_used, completions, _note(connection))
    except sqlite3.DatabaseError as error:
        state = "aside" if aside else "store" if _hinders(error) else "torn"
        return StoreFile(path, state, size, last_used)


def _hinders(error: sqlite3.DatabaseError) -> bool:
    """Whether an error is about access to the file and not about its contents."""
    return error.sqlite_errorcode & 0xFF in _HINDRANCES


def _note(connection: sqlite3.Connection) -> dict[str, str]:
    try:
        rows = connection.execute("SELECT name, value FROM note").fetchall()
        return {name: value for name, value in rows if isinstance(name, str) and isinstance(value, str)}
    except sqlite3.OperationalError:  # written before stores had one
        return {}


@contextmanager
def _alone(path: Path, *, torn: bool = False) -> Iterator[None]:
    """Holds a store's exclusive lock, which is refused while another process has the file open.

    Leaving write-ahead mode requires it: every connection in that mode holds a shared lock from its first access on.

    Args:
        torn: whether a file without preftune's mark counts as its own torn file, by its name.
    """
    with opened(path, patience=0.0) as connection:
        try:
            if not has_mark(connection, MARK) and not torn:
                raise _NotOursError
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _BUSY:
                raise _InUseError from error
        except sqlite3.DatabaseError as error:
            if not torn and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
                raise _NotOursError from error
        if os.name == "nt":  # which deletes no file that is open
            connection.close()
        yield
