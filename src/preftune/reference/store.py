"""Reference scores on disk: write-through, content-addressed, shared by processes, and verified.

One SQLite file per model and numerics; the key is a digest of the token ids, the value the completion's per-token
log-probabilities in float32 behind a checksum. SQLite provides locking, crash safety and lookups; faults that it cannot
exclude (a torn file copied from elsewhere, another file under the same name) are detected by checksums, and the file is
rebuilt."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from preftune.errors import PreftuneError
from preftune.storage.cache_folder import make_private
from preftune.storage.key_value import BUSY_SECONDS, connect, has_mark, select, set_aside
from preftune.version import __version__

log = logging.getLogger("preftune")

Scores = npt.NDArray[np.float32]

MARK = 0x50465431  # "PFT1": marks the file as ours and its format
_INDEX_KILOBYTES = 8_000  # of memory: the index of a quarter of a million completions

_OF_THE_PARENT: list[sqlite3.Connection] = []
"""Connections that a forked child inherited. SQLite forbids closing them there, so they are never collected."""


class ScoreStore:
    """Per-token reference scores under one (model, numerics) address.

    Every failure to read is a miss. A failure to write (a full disk, a read-only folder) is reported once, and the run
    continues without the cache."""

    def __init__(self, folder: Path, *, fingerprint: str, numerics: str, note: Mapping[str, str] | None = None) -> None:
        """
        Args:
            fingerprint, numerics: the address: the model and the computation.
            note: a description for people (`model`, `engine`, ...), written to a new file and shown by `preftune cache
                ls`. It is not used for lookups.
        """
        self.address = (fingerprint, numerics)
        self.path = folder / fingerprint[:2] / f"{fingerprint}-{numerics}.sqlite"
        self.note = dict(note or {})
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self._unreadable = self._unwritable = False

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Scores]:
        """The existing, intact scores; absent keys are misses."""
        rows = ((bytes(key), unpack(key, value)) for key, value in select(self._run, "scores", keys))
        return {key: scores for key, scores in rows if scores is not None}

    def put(self, scores: Mapping[bytes, Scores]) -> None:
        """Adds scores; existing ones are overwritten (the same address has the same content)."""
        rows = [(key, _pack(key, value)) for key, value in scores.items()]
        if rows and not self._unwritable:
            self._run("INSERT OR REPLACE INTO scores (key, value) VALUES (?, ?)", rows, many=True)

    def __len__(self) -> int:
        rows = self._run("SELECT count(*) FROM scores", [])
        return int(rows[0][0]) if rows else 0

    @property
    def usable(self) -> bool:
        """False once the file could not be read or written. Existing scores may still be read."""
        return not (self._unreadable or self._unwritable)

    def check_kept(self) -> None:
        """Raises: PreftuneError if scores could not be written."""
        if not self.usable:
            raise PreftuneError(
                "The reference scores could not be kept on the disk. Make room, or set PREFTUNE_CACHE to a folder that "
                "can be written."
            )

    def close(self) -> None:
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
            self._connection = None

    def _run(self, sql: str, values: Sequence[Any], *, many: bool = False) -> list[Any]:
        for attempt in (1, 2):
            if self._unreadable:
                return []
            try:
                connection = self._connect()
                with connection:
                    if many:
                        connection.executemany(sql, values)
                        return []
                    return connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such" not in str(error) and "has no column" not in str(error):
                    return self._give_up(error, writing=many)  # locked too long, read-only, disk full
                if attempt == 2:
                    return self._give_up(error)
                self.discard(f"another version's: {error}")  # our mark, but tables of another version of preftune
            except sqlite3.DatabaseError as error:
                if attempt == 2:
                    return self._give_up(error)
                self._set_aside(error)
            except OSError as error:
                return self._give_up(error)
        return []

    def _connect(self) -> sqlite3.Connection:
        if self._connection is not None and self._process != os.getpid():
            _OF_THE_PARENT.append(self._connection)  # a forked child must neither use nor close it
            self._connection = None
        if self._connection is None:
            make_private(self.path.parent)
            self._connection, self._process = self._open(), os.getpid()
            with contextlib.suppress(OSError):  # the file's time is when it was last used, and reading alone is a use
                os.utime(self.path)
        return self._connection

    def _open(self) -> sqlite3.Connection:
        while True:
            found = _inode(self.path)
            connection = connect(self.path, mark=MARK, create=self._create)
            connection.execute(f"PRAGMA cache_size=-{_INDEX_KILOBYTES}")
            if found in (None, _inode(self.path)):
                return connection
            connection.close()  # `preftune cache prune` removed it while we waited for it

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        connection.execute("CREATE TABLE note (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        created = {**self.note, "created": str(int(time.time())), "preftune": __version__}
        connection.executemany("INSERT INTO note (name, value) VALUES (?, ?)", list(created.items()))

    def _set_aside(self, error: Exception) -> None:
        """Renames a file that is torn or was not written by preftune, and starts a new one."""
        self.close()
        if not _intact(self.path):  # or another process was faster
            self.discard(str(error))

    def discard(self, reason: str) -> None:
        """Renames the file for later inspection, and starts a new one."""
        self.close()
        with contextlib.suppress(OSError):
            set_aside(self.path)
        log.warning("The reference cache %s was damaged (%s); it was set aside and is rebuilt.", self.path, reason)

    def _give_up(self, error: Exception, *, writing: bool = False) -> list[Any]:
        """Reports the failure once, and answers every later request with a miss."""
        if self.usable:
            log.warning(
                "The reference cache %s cannot be %s (%s); reference scores are computed and not kept. "
                "Set PREFTUNE_CACHE to a folder that can be written.",
                self.path,
                "written" if writing else "used",
                error,
            )
        self._unwritable = True
        self._unreadable |= not writing
        return []


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _intact(path: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            return has_mark(connection, MARK) and connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        return False


def _pack(key: bytes, scores: Scores) -> bytes:
    data = np.ascontiguousarray(scores, dtype="<f4").tobytes()
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(key + data)) + data


def unpack(key: bytes, value: object) -> Scores | None:
    """The scores of a row, or None if its checksum does not match this key."""
    if not isinstance(value, bytes) or len(value) < 8 or len(value) % 4:
        return None
    data = value[8:]
    if struct.unpack("<Q", value[:8])[0] != xxhash.xxh3_64_intdigest(bytes(key) + data):
        return None
    return np.frombuffer(data, dtype="<f4")
