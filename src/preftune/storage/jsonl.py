"""The files of `eval/`: JSON lines that grow by appending and survive kill -9; JSON that is replaced in one step.

Lines from which preftune continues are sealed: they hold a checksum of their own. Sealed lines that were changed later
are left out by every reader, so that what they held is made again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.log import warn
from preftune.storage.atomic import naming, staged, write_whole

CHECKSUM = "checksum"
"""The field of a sealed line."""
_REPORTED: set[tuple[Path, int]] = set()


def digest(value: Any) -> str:
    """A short content address of any JSON value (keys sorted): 16 hexadecimal digits of SHA-256."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prepare_folder(folder: Path) -> None:
    """Creates the folder and checks that it can be written to, before any work is done.

    Raises: RequestError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"Nothing can be written to {folder} ({error.strerror or error}). Choose another output folder."
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` in one step: a reader sees the old or the new file, never a part."""
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces `path` with one indented JSON object."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]], *, sealed: bool = False) -> None:
    """Replaces `path` with one JSON object per line."""
    with staged_lines(path, records, sealed=sealed):
        pass


def staged_lines(
    path: Path, records: Iterable[Mapping[str, Any]], *, sealed: bool = False
) -> AbstractContextManager[None]:
    """Like `write_lines`; the file is replaced when the body has succeeded."""
    return staged(path, "".join(_line(record, sealed) for record in records).encode("utf-8", "backslashreplace"))


def append_lines(path: Path, records: Iterable[Mapping[str, Any]], *, sealed: bool = False) -> None:
    """Appends one JSON object per line and waits until they are on the disk. A torn last line is ended first."""
    torn = not _ends_whole(path)
    text = ("\n" if torn else "") + "".join(_line(record, sealed) for record in records)
    with naming(path), open(path, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def cut_torn_line(path: Path) -> None:
    """Removes a torn last line, so that every line of the file is a complete object again."""
    if _ends_whole(path):
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    try:
        complete = isinstance(json.loads(data[whole:]), dict)  # only its line break is missing
    except ValueError:
        complete = False
    with open(path, "r+b") as file:
        if complete:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(whole)
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, torn or not an object. Its values may have any type:
    check them.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete objects of a JSON lines file, without checksums; torn lines are left out, and damaged ones are
    reported too. Empty if there is no file.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = [record for record in map(read_line, lines) if record is not None]
    intact = [record for record in records if record]
    report_damage(path, len(records) - len(intact))
    return intact


def read_line(line: str) -> dict[str, Any] | None:
    """The object of a line, without its checksum: empty if it does not fit its checksum, None if it is no object."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return None
        checksum = record.pop(CHECKSUM, None)
        return record if checksum is None or checksum == digest(record) else {}
    except (ValueError, RecursionError):
        return None


def report_damage(path: Path, lines: int) -> None:
    """Warns, once per job, of lines that are not used because they were changed after they had been written."""
    if lines and (path, lines) not in _REPORTED:
        _REPORTED.add((path, lines))
        warn(f"{path} holds {counted(lines, 'damaged line')}; what was there is generated or judged again.")


def _line(record: Mapping[str, Any], sealed: bool) -> str:
    if sealed:
        as_read = json.loads(json.dumps(record, allow_nan=False))  # keys become texts, and surrogates are joined
        record = {**record, CHECKSUM: digest(as_read)}
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
