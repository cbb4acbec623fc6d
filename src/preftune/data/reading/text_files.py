"""Text files -> rows, one line at a time: JSONL, JSON, CSV and TSV, each also gzipped.

Only the current line is kept (a JSON array is one value, and is read whole). Errors name file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from preftune.amounts import counted, of_type
from preftune.bounds import bound, raising, size
from preftune.data.reading.half_pairs import HalfPairs, may_hold
from preftune.errors import DatasetError

Row = Mapping[str, Any]

READABLE = "jsonl, json, csv, tsv or parquet, each also as .gz"

_TABLES = frozenset({"data", "rows", "pairs", "examples", "instances", "items", "train", "test", "validation"})
"""Keys under which a JSON object may hold the list of rows."""

GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_PIECE = 2**20
"""Maximum number of bytes of a line that are read at a time."""
_CSV_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


def text_rows(path: Path, kind: str | None, *, tabs: bool = False) -> Iterator[Row]:
    """Yields the rows of a text file.

    Args:
        kind: "json" or "csv"; None to accept text that begins like JSON.
        tabs: fields of a csv file are separated by tabs.
    Raises:
        DatasetError: empty, torn, binary, in another encoding, or broken, with the line.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
        file.seek(0)
        opened: Any = gzip.GzipFile(fileobj=file) if zipped else file
        yield from read_rows(opened, str(path), kind, tabs=tabs, zipped=zipped)


def read_rows(
    file: IO[bytes], name: str, kind: str | None, *, tabs: bool = False, zipped: bool = False
) -> Iterator[Row]:
    """Like `text_rows`, for an open file."""
    lines = _Lines(file, name, zipped=zipped)
    first = next(lines, None)
    while first is not None and not first.strip():
        first = next(lines, None)
    if first is None:
        raise DatasetError(
            f"{name} is empty inside its gzip. Give a file with one preference pair per line."
            if zipped and lines.offset == 0
            else f"{name} is empty. Give a file with one preference pair per line."
        )
    start = first.lstrip()[:1]
    if kind is None and start not in ("{", "["):
        raise DatasetError(f"{name} is not in a file format that preftune reads. Give it as {READABLE}.")
    if kind == "csv":
        yield from _csv_rows(
            first, lines, delimiter="\t" if tabs else next((mark for mark in (",", ";", "\t") if mark in first), ",")
        )
    elif start == "[":
        value = _parse_whole(_text_of_list(first, lines), lines)
        yield from value if isinstance(value, list) else [value]
    else:
        yield from _json_lines(first, lines)
    lines.half_pairs.warn_once()


class _Lines(Iterator[str]):
    """Lines of text in UTF-8 (or UTF-16 with its mark) with their ends; broken only at line feeds."""

    def __init__(self, file: IO[bytes], name: str, *, zipped: bool) -> None:
        self.name = name
        self.number = 0
        """Number of the last line, from 1."""
        self.first = 1
        self.offset = 0
        """Number of bytes read."""
        self.half_pairs = HalfPairs(name)
        self._zipped = zipped
        self._file = file

    def __next__(self) -> str:
        raw = self._raw()
        if not raw:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            raw = self._without_mark(raw)
        if b"\0" in raw:
            raise DatasetError(f"{self.name} is a binary file, not text (line {self.number}). Give it as {READABLE}.")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{self.name} is not text in UTF-8 (byte {self.offset + error.start}, line {self.number}): a binary "
                f"file, or another encoding. Give it as {READABLE}, in UTF-8."
            ) from error
        self.offset += len(raw)
        if not text.strip() and self.first == self.number:
            self.first += 1
        return text

    def _raw(self) -> bytes:
        """The next line, in pieces, so that an endless line is refused before it fills the memory."""
        parts: list[bytes] = []
        most, total = bound("line"), 0
        while True:
            part = self._piece()
            parts.append(part)
            total += len(part)
            if len(part) < _PIECE or part.endswith(b"\n"):
                return part if len(parts) == 1 else b"".join(parts)
            if b"\0" in part and not self._wide(parts[0]):
                return part  # binary: there is no need for the rest of it
            if total > most:
                raise DatasetError(
                    f"{self.name} line {self.number + 1} is longer than {size(most)}. Write one row per line (JSONL), "
                    f"or check the file; {raising('line', '8GB')}."
                )

    def _wide(self, first: bytes) -> bool:
        """Whether the file is in UTF-16, in which characters contain null bytes."""
        return self.number == 0 and first[:2] in _UTF16

    def _piece(self) -> bytes:
        try:
            return self._file.readline(_PIECE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._torn(error) from error
        except OSError as error:
            if self._zipped:
                raise self._torn(error) from error
            raise DatasetError(
                f"{self.name} cannot be read: {error.strerror}. Check the path and its permissions."
            ) from error

    def _torn(self, error: BaseException) -> DatasetError:
        return DatasetError(
            f"{self.name} is a broken gzip file: {error} (after line {self.number}). Compress it again."
        )

    def _without_mark(self, raw: bytes) -> bytes:
        """The first line without its byte order mark; a file in UTF-16 is read whole."""
        if raw[:2] in _UTF16:
            parts = [raw]
            while part := self._raw():
                parts.append(part)
            try:
                text = b"".join(parts).decode("utf-16")
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{self.name} begins like text in UTF-16 but is not (byte {error.start}): it is binary or torn. "
                    f"Give it as {READABLE}, in UTF-8."
                ) from error
            self._file = io.BytesIO(text.encode("utf-8"))
            return self._file.readline()
        if raw.startswith(_UTF8_MARK):
            self.offset = len(_UTF8_MARK)
            return raw[len(_UTF8_MARK) :]
        return raw


def _json_lines(first: str, lines: _Lines) -> Iterator[Row]:
    """Yields the rows of JSONL, or of one object printed over several lines."""
    name = lines.name
    try:
        value = parse_object(first, lines)
    except DatasetError:
        # One object printed over several lines is JSON too; if it is not that, the error of the line is the better one.
        whole = _object_or_none("".join((first, *lines)), lines)
        if whole is None:
            raise
        yield from _rows_of_object(whole, name)
        return
    following = next(lines, None)
    while following is not None and not following.strip():
        following = next(lines, None)
    if following is None:
        yield from _rows_of_object(value, name)
        return
    yield value
    yield parse_object(following, lines)
    for line in lines:
        if line.strip():
            yield parse_object(line, lines)


def parse_object(line: str, lines: _Lines) -> dict[str, Any]:
    """The object in the line of JSONL that was read last."""
    name, number = lines.name, lines.number
    try:
        value = json.loads(line, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        column = getattr(error, "colno", 1)
        raise DatasetError(
            f"{name} line {number} is not valid JSON: {_problem(error)} at column {column}: "
            f"{short(line[max(0, column - 20) : column + 200].rstrip())}. Correct or remove that line."
        ) from error
    if not isinstance(value, dict):
        raise DatasetError(
            f"{name} line {number} holds {of_type(value)}, not an object: {short(line.strip())}. "
            'Write every line as {"prompt": ..., "chosen": ..., "rejected": ...}.'
        )
    return lines.half_pairs.of_row(value, f"line {number}") if may_hold(line) else value


def _text_of_list(first: str, lines: _Lines) -> str:
    """The text of a file that holds one list. Raises: DatasetError for a list on each line of JSONL."""
    read = [first]
    for following in lines:
        read.append(following)
        if following.strip():
            if first.rstrip().endswith("]") and _is_list(first):
                raise DatasetError(
                    f"{lines.name} holds a list on its first line, and more lines after it: {short(first.strip())}. "
                    'Write every line as an object: {"prompt": ..., "chosen": ..., "rejected": ...}, or a conversation '
                    'as {"messages": [...]}.'
                )
            break
    return "".join((*read, *lines))


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _no_key_twice(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object, and raises for a repeated key: one of two values for `chosen` would be lost silently."""
    made = dict(items)
    if len(made) < len(items):
        keys = [key for key, _ in items]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return made


def _problem(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(getattr(error, "msg", error))


def _object_or_none(text: str, lines: _Lines) -> dict[str, Any] | None:
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError):
        return None
    return lines.half_pairs.of_row(value, "the object") if isinstance(value, dict) else None


def _rows_of_object(value: dict[str, Any], name: str) -> list[Row]:
    tables = [key for key, inner in value.items() if key in _TABLES and isinstance(inner, list)]
    if "chosen" in value or not tables:
        return [value]
    if len(tables) > 1:
        found = ", ".join(map(repr, tables))
        raise DatasetError(f"{name} holds several lists of rows ({found}). Keep one of them per file.")
    rows: list[Row] = value[tables[0]]
    return rows


def _parse_whole(text: str, lines: _Lines) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
        raise DatasetError(
            f"{lines.name} line {line + lines.first - 1} is not valid JSON: {_problem(error)} at column {column}. "
            "Correct that place, or write one object per line (JSONL)."
        ) from error
    if not isinstance(value, list) or not may_hold(text):
        return value
    return [lines.half_pairs.of_row(row, f"row {number}") for number, row in enumerate(value)]


def _csv_rows(first: str, lines: _Lines, *, delimiter: str) -> Iterator[Row]:
    name = lines.name
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses fields above 128 KiB
    reader = csv.reader(_csv_lines(first, lines), delimiter=delimiter, strict=True)
    before = lines.number - 1  # blank lines in front
    try:
        header = next(reader, [])
        twice = {column for column in header if header.count(column) > 1}
        if twice:
            raise DatasetError(f"{name} has two columns named {min(twice)!r}. Rename one of the two in its first line.")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DatasetError(
                    f"{name} line {reader.line_num + before} has {counted(len(fields), 'field')}, but the header has "
                    f"{len(header)}. Put fields that contain {delimiter!r} or line breaks in double quotes."
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DatasetError(
            f"{name} line {reader.line_num + before} is not valid CSV: {error}. Correct the quotes of that line, or "
            "write JSONL."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _csv_lines(first: str, lines: Iterator[str]) -> Iterator[str]:
    """Yields lines that end with a line feed, a carriage return, or both."""
    yield from _split(first)
    for line in lines:
        yield from _split(line)


def _split(line: str) -> list[str]:
    bare = line.rstrip("\r\n")
    return [part for part in _CSV_LINE.findall(line) if part] if "\r" in bare or line.endswith("\r") else [line]


def short(value: object, limit: int = 60) -> str:
    """A value as an error quotes it."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
