"""What judges said, kept on disk by content, so that nothing is asked twice: not after a kill, not in another run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preftune.cache_folder import cache_folder, make_private
from preftune.errors import RequestError
from preftune.log import warn

_APPLICATION_ID = 0x50465631  # "PFV1": marks the file as ours and its format
_BUSY_SECONDS = 30.0
_KEYS_PER_QUERY = 500


def verdict_key(*content: Any) -> str:
    """The address of one verdict: everything that it depends on, the judge first."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class VerdictCache:
    """Verdicts (any JSON value) by address, in one SQLite file that several processes may share.

    A file that is torn or not ours is set aside with a warning and begun anew. One that cannot be written is an error,
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
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                from preftune.reference.store import set_aside  # brings torch, which judging does not need

                warn(f"The verdicts in {self.path} were damaged ({error}); they were set aside and are rebuilt.")
                set_aside(self.path)
                self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise RequestError(
                f"Verdicts cannot be kept in {self.path.parent} ({error}). Set PREFTUNE_CACHE to a folder that can be "
                "written."
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The verdicts that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        for start in range(0, len(wanted), _KEYS_PER_QUERY):
            part = wanted[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT key, value FROM verdicts WHERE key IN ({marks})", part)
            found.update((key, json.loads(value)) for key, value in rows)
        return found

    def put(self, verdicts: Mapping[str, Any], *, judge: str) -> None:
        """Keeps verdicts; they are on the disk when this returns."""
        now = int(time.time())
        rows = [(key, json.dumps(value), judge, now) for key, value in verdicts.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", rows)

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def close(self) -> None:
        self._connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, check_same_thread=False)
        try:
            _initialise(connection)
            connection.execute("SELECT count(*) FROM (SELECT key, value FROM verdicts LIMIT 1)").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


def _initialise(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.OperationalError):  # others are at work in it: it stays as it is, which is slower
        connection.execute("PRAGMA journal_mode=WAL")
    if _is_ours(connection):
        return
    connection.execute("BEGIN IMMEDIATE")  # of several processes that find no file, one creates it
    try:
        if not _is_ours(connection):
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables:
                raise sqlite3.DatabaseError("a database of something else")
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(
                "CREATE TABLE verdicts (key TEXT PRIMARY KEY, value TEXT NOT NULL, judge TEXT, created INTEGER)"
            )
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _is_ours(connection: sqlite3.Connection) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    return bool(application == _APPLICATION_ID)
