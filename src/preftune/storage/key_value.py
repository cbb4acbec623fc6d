"""SQLite files with a table of keys and values, shared by processes: created once, recognised by a mark, set aside when
damaged. SQLite provides locking, crash safety and lookups.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

BUSY_SECONDS = 30.0
"""Maximum time that another process may hold the lock."""
SIDE_FILES = ("-wal", "-shm", "-journal")
"""Suffixes of the side files of SQLite."""
_KEYS_PER_QUERY = 500


def connect(path: Path, *, mark: int, create: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Opens a file; if it is missing, exactly one of several processes creates it.

    Args:
        mark: the application id in the header of the format's files.
        create: makes the tables in a new file, within a transaction.
    Raises: sqlite3.DatabaseError for a damaged file or a database of another program; OperationalError for one that
        cannot be opened, is locked, or does not fit on the disk.
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    connection.text_factory = _text
    try:
        if not has_mark(connection, mark):
            _create(connection, mark, create)
        connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _text(stored: bytes) -> str | bytes:
    """A text of a row; as bytes if it is damaged and not UTF-8, which SQLite would report as a failure of the query."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _create(connection: sqlite3.Connection, mark: int, create: Callable[[sqlite3.Connection], None]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not has_mark(connection, mark):
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables:
                raise sqlite3.DatabaseError("a database of something else")
            connection.execute(f"PRAGMA application_id={mark}")
            create(connection)
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
    with contextlib.suppress(sqlite3.OperationalError):  # others are at work in it: it stays as it is, which is slower
        connection.execute("PRAGMA journal_mode=WAL")


def has_mark(connection: sqlite3.Connection, mark: int) -> bool:
    """Whether a database has this mark."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    return bool(application == mark)


def select(
    fetch: Callable[[str, Sequence[Any]], Iterable[tuple[Any, Any]]], table: str, keys: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    """The rows of a table with these keys.

    Args:
        fetch: function that runs a query with its values.
    """
    wanted = list(dict.fromkeys(keys))
    for start in range(0, len(wanted), _KEYS_PER_QUERY):
        part = wanted[start : start + _KEYS_PER_QUERY]
        marks = ",".join("?" * len(part))
        yield from fetch(f"SELECT key, value FROM {table} WHERE key IN ({marks})", part)


@contextlib.contextmanager
def opened(path: Path, *, patience: float = 5.0) -> Iterator[sqlite3.Connection]:
    """A connection that creates nothing. `open()` must not be used on a database: closing it would drop SQLite's locks.

    Args:
        patience: maximum time in seconds to wait for a writer.
    """
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=patience)
    connection.text_factory = _text
    try:
        yield connection
    finally:
        connection.close()


def set_aside(path: Path) -> Path:
    """Renames a file that cannot be used, in the same folder; returns the new name. Raises: OSError."""
    aside = path.with_suffix(f".damaged-{int(time.time())}")
    os.replace(path, aside)
    for suffix in SIDE_FILES:
        with contextlib.suppress(OSError):
            os.remove(f"{path}{suffix}")
    return aside
