"""The reference scores of a run whose reference cannot be asked again: in memory as long as they are few."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

import numpy as np

from preftune.errors import ReferenceMismatchError
from preftune.reference.store import Scores
from preftune.storage.key_value import select

MOST_IN_MEMORY = 2**22
"""Size in bytes from which scores are in a file."""
_OF_A_SCORE = 250
"""Bytes of an entry besides its scores, about."""
_CACHE_KILOBYTES = 2000


class RunScores:
    """Scores by the digest of a completion. The file belongs to this process, has no name, and ends with it."""

    def __init__(self) -> None:
        self._file: sqlite3.Connection | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets all scores."""
        self._held: dict[bytes, Scores] = {}
        self._bytes = 0
        if self._file is not None:
            self._file.close()
        self._file = None

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Scores]:
        """The known scores of some completions."""
        if self._file is None:
            return {key: self._held[key] for key in keys if key in self._held}
        file = self._file
        rows = select(lambda sql, values: file.execute(sql, values).fetchall(), "scores", keys)
        return {key: np.frombuffer(value, "<f4") for key, value in rows}

    def put(self, scores: Mapping[bytes, Scores]) -> None:
        """Adds scores.

        Raises: ReferenceMismatchError: they do not fit on the disk, and cannot be computed again.
        """
        if self._file is not None:
            self._write(self._file, scores)
            return
        self._bytes += sum(score.nbytes + _OF_A_SCORE for key, score in scores.items() if key not in self._held)
        self._held.update(scores)
        if self._bytes > MOST_IN_MEMORY:
            self._file = sqlite3.connect("", check_same_thread=False)  # a file that SQLite removes
            self._file.execute(f"PRAGMA cache_size=-{_CACHE_KILOBYTES}")
            self._file.execute("PRAGMA journal_mode=OFF")
            self._file.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
            self._write(self._file, self._held)
            self._held = {}

    def _write(self, file: sqlite3.Connection, scores: Mapping[bytes, Scores]) -> None:
        rows = [(key, np.ascontiguousarray(score, "<f4").tobytes()) for key, score in scores.items()]
        try:
            with file:
                file.executemany("INSERT OR REPLACE INTO scores (key, value) VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise ReferenceMismatchError(
                f"The reference scores of this run do not fit on the disk ({error}), and the reference cannot be asked "
                "again. Set SQLITE_TMPDIR to a folder with more room."
            ) from error

    def __len__(self) -> int:
        if self._file is None:
            return len(self._held)
        return int(self._file.execute("SELECT count(*) FROM scores").fetchone()[0])
