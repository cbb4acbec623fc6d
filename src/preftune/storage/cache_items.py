"""The contents of the cache folder besides reference scores: token ids, rows, answers of reference models, verdicts,
judges, models, leftovers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preftune.storage.atomic import ABANDONED_S
from preftune.storage.key_value import opened

Kind = Literal["tokens", "rows", "answers", "verdicts", "judges", "models", "leftovers"]
KINDS: tuple[Kind, ...] = ("tokens", "rows", "answers", "verdicts", "judges", "models", "leftovers")
DEAR: tuple[Kind, ...] = ("verdicts", "judges", "models")
"""Kinds that cost money or minutes to make again: a limit on the size removes them only if they are named."""

_FILES: tuple[tuple[Kind, str], ...] = (
    ("tokens", "*.arrow"),
    ("tokens", "*.npz"),
    ("rows", "*.arrow"),
    ("answers", "*.jsonl"),
    ("verdicts", "*.damaged-*"),
)


@dataclass(frozen=True, slots=True)
class CacheItem:
    """A file, a folder, or the verdicts up to an age."""

    path: Path
    kind: Kind
    size: int
    """Bytes."""
    last_used: float
    """Seconds since the epoch."""
    count: int = 1
    """Number of verdicts; 1 for every other kind."""
    until: float | None = None
    """For verdicts: the time up to which they were given, in seconds since the epoch."""
    model: str = ""

    @property
    def state(self) -> str:
        return "leftover" if self.kind == "leftovers" else "kept"

    @property
    def id(self) -> str:
        return self.kind

    @property
    def name(self) -> str:
        return f"{self.count:,} verdicts" if self.until is not None else self.path.name


def list_items(root: Path, *, now: float, older_than: float = 0.0) -> list[CacheItem]:
    """Everything that preftune keeps below the cache folder, except reference scores.

    Args:
        older_than: include only verdicts older than this many seconds.
    Raises: OSError for a folder that cannot be read, in which patterns would silently find nothing.
    """
    for kind in KINDS:
        if (root / kind).is_dir():
            os.listdir(root / kind)
    found = [_item(path, kind) for kind, pattern in _FILES for path in sorted((root / kind).glob(pattern))]
    for kind in ("judges", "models"):
        folder = root / kind
        found += [_item(path, kind) for path in _visible(folder)]
        found += [_item(path, "leftovers") for path in sorted(folder.glob(".*"))]
    for kind in ("tokens", "rows"):
        found += [_item(path, "leftovers") for path in sorted((root / kind).glob(".writing-*"))]
    verdicts = _verdicts(root / "verdicts" / "verdicts.sqlite", now - older_than)
    return [
        *(one for one in found if one.kind != "leftovers" or now - one.last_used > ABANDONED_S),
        *([] if verdicts is None else [verdicts]),
    ]


def remove_item(item: CacheItem) -> bool:
    """Removes an item; returns whether it is gone. Verdicts are deleted row by row, because another process may be
    adding to the file.
    """
    try:
        if item.until is not None:
            _forget_verdicts(item.path, item.until)
        elif item.path.is_dir() and not item.path.is_symlink():
            shutil.rmtree(item.path)
        else:
            item.path.unlink()
    except (OSError, sqlite3.Error):
        return False
    return True


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _item(path: Path, kind: Kind) -> CacheItem:
    size, last_used = 0, 0.0
    for part in _parts(path):
        with contextlib.suppress(OSError):  # removed while we looked
            facts = part.lstat()
            size, last_used = size + facts.st_size, max(last_used, facts.st_mtime)
    return CacheItem(path, kind, size, last_used)


def _parts(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            yield Path(folder, name)


def _verdicts(path: Path, until: float) -> CacheItem | None:
    if not path.is_file():
        return None
    try:
        with opened(path) as connection:
            count, size, last = connection.execute(
                "SELECT count(*), coalesce(sum(length(value) + length(key)), 0), max(created) FROM verdicts "
                "WHERE coalesce(created, 0) <= ?",
                (until,),
            ).fetchone()
    except sqlite3.Error:  # damaged, or locked: the next judge says so
        return None
    return CacheItem(path, "verdicts", size, float(last or 0), count, until) if count else None


def _forget_verdicts(path: Path, until: float) -> None:
    with opened(path) as connection:
        with connection:
            connection.execute("DELETE FROM verdicts WHERE coalesce(created, 0) <= ?", (until,))
        with contextlib.suppress(sqlite3.OperationalError):  # in use: the room is used for the next verdicts
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
