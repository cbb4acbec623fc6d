"""Verdicts of judges on disk, by content, so that no question is asked twice, after a kill or in another run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.log import warn
from preftune.storage.cache_folder import cache_folder, make_private
from preftune.storage.key_value import connect, select, set_aside

_APPLICATION_ID = 0x50465631  # "PFV1": marks the file as ours and its format


def verdict_key(*content: Any) -> str:
    """The address of one verdict: everything that it depends on, the judge first."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class VerdictCache:
    """Verdicts (any JSON value) by address, in one SQLite file that several processes may share.

    A file that is torn or not ours is set aside with a warning and made again. One that cannot be written is an error,
    unlike elsewhere: what is asked of an endpoint costs money.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """
        Args:
            folder: default `verdicts` in preftune's cache folder.
        Raises: RequestError when nothing can be written there.
        """
        self.path = (folder or cache_folder() / "verdicts") / "verdicts.sqlite"
        try:
            make_private(self.path.parent)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                    raise
                warn(f"The verdicts in {self.path} were damaged ({error}); they were set aside and are rebuilt.")
                set_aside(self.path)
                self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise RequestError(
                f"Verdicts cannot be written to {self.path.parent} ({error}). Set PREFTUNE_CACHE to a folder that can "
                "be written."
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The verdicts that are there."""
        with self._usable():
            rows = list(select(self._connection.execute, "verdicts", keys))
        found = {key: _checked(key, value) for key, value in rows}
        damaged = [key for key, value in found.items() if value is _DAMAGED]
        if damaged:
            warn(f"{self.path} holds {counted(len(damaged), 'damaged verdict')}, to be requested again.")
        return {key: value for key, value in found.items() if value is not _DAMAGED}

    def put(self, verdicts: Mapping[str, Any], *, judge: str) -> None:
        """Keeps verdicts; they are on the disk when this returns."""
        now = int(time.time())
        rows = [(key, _with_check(key, json.dumps(value)), judge, now) for key, value in verdicts.items()]
        with self._usable(), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", rows)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Raises: RequestError for a disk that is full, a file that is locked for too long, or one that is damaged."""
        try:
            yield
        except sqlite3.Error as error:
            raise RequestError(
                f"The verdicts in {self.path} cannot be read or written ({error}). Make room on the disk, end other "
                "processes that use the file, or set PREFTUNE_CACHE to another folder; verdicts so far are kept."
            ) from error

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = connect(self.path, mark=_APPLICATION_ID, create=_create)
        try:
            connection.execute("SELECT count(*) FROM (SELECT key, value FROM verdicts LIMIT 1)").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


_DAMAGED = object()


def _with_check(key: str, text: str) -> str:
    """JSON text with a checksum on a line of its own, which JSON of one line cannot hold."""
    digest = hashlib.blake2b(f"{key}{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{text}\n{digest}"


def _checked(key: str, stored: object) -> Any:
    """The value of a row; rows of earlier versions have no checksum, and are taken if they are JSON."""
    if not isinstance(stored, str):
        return _DAMAGED
    text, _, digest = stored.partition("\n")
    if digest and _with_check(key, text) != stored:
        return _DAMAGED
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _DAMAGED


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, value TEXT NOT NULL, judge TEXT, created INTEGER)")
