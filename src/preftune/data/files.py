"""Local files -> rows: jsonl, json, csv, tsv and parquet, each also gzipped. A fault names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
READABLE = "jsonl, json, csv, tsv or parquet, each also as .gz"

_TABLES = frozenset({"data", "rows", "pairs", "examples", "instances", "items", "train", "test", "validation"})
"""Under these names a JSON object may hold the list of rows."""

_LARGE = 512 * 2**20
"""Bytes from which an uncompressed file is read through the datasets library (memory-mapped) instead of into memory."""


def kind_of(path: Path) -> str | None:
    """'json', 'csv' or 'parquet' by the file's name, seen through a .gz; None when the name does not tell."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path) -> Dataset:
    """Reads one local file.

    Raises:
        DatasetError: the file is empty, binary, broken (with its line), or of no kind that can be read.
    """
    import datasets

    name = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if size == 0:
        raise DatasetError(f"{name} is empty. Give a file with one preference pair per line.")

    kind = "parquet" if magic == b"PAR1" else kind_of(path)
    if size >= _LARGE and magic[:2] != b"\x1f\x8b" and kind is not None:
        try:
            return datasets.load_dataset(kind, data_files=name, split="train")
        except Exception as error:
            cause = error.__cause__ or error
            raise DatasetError(f"{name} cannot be read as {kind}: {_first_line(cause)}") from error

    data = _bytes_of(path, magic)
    if data[:4] == b"PAR1":
        return _read_parquet(data, name)
    if kind == "parquet":
        raise DatasetError(f"{name} is not a parquet file (it does not begin with PAR1). Check how it was written.")
    text = _text_of(data, name)
    if kind is None:
        kind = "json" if text.lstrip()[:1] in ("{", "[") else None
    if kind is None:
        raise DatasetError(f"{name} is of no kind that preftune reads. Give it as {READABLE}.")
    if kind == "csv":
        tab = ".tsv" in (suffix.lower() for suffix in path.suffixes)
        return from_rows(list(_csv_rows(text, name, delimiter="\t" if tab else ",")), name)
    return from_rows(json_rows(text, name), name)


def from_rows(rows: Iterable[Row], name: str) -> Dataset:
    """A Dataset of rows that may differ in their keys and in the types of their values.

    `Dataset.from_list` keeps the first row's keys only and refuses a column that holds text here and messages there.
    """
    from datasets import Dataset

    rows = list(rows)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DatasetError(
                f"{name} row {number} is a {type(row).__name__}, not an object with columns: {_short(row)}. "
                'Give every row as {"prompt": ..., "chosen": ..., "rejected": ...}.'
            )
    if not rows:
        raise DatasetError(f"{name} has no rows. Give at least one preference pair.")
    keys = dict.fromkeys(str(key) for row in rows for key in row)
    return Dataset.from_dict({key: [row.get(key) for row in rows] for key in keys}, on_mixed_types="use_json")


def json_rows(text: str, name: str) -> list[Row]:
    """Rows of a JSONL text, of a JSON array, or of an object that holds one array of rows."""
    start = text.lstrip()
    if not start:
        raise DatasetError(f"{name} is empty. Give a file with one preference pair per line.")
    if start[0] == "[":
        value = _parse_whole(text, name)
        return value if isinstance(value, list) else [value]
    try:
        return list(_json_lines(text, name))
    except DatasetError:
        # One object printed over several lines is JSON too; if it is not that, the error of the line is the better one.
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise
    return _rows_of_object(value, name)


def _json_lines(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, line in lines:
        try:
            value = json.loads(line)
        except ValueError as error:
            column = getattr(error, "colno", 1)
            raise DatasetError(
                f"{name} line {number} is not valid JSON: {getattr(error, 'msg', error)} at column {column}: "
                f"{_short(line[max(0, column - 20) :])}. Mend or remove that line."
            ) from error
        if not isinstance(value, dict):
            raise DatasetError(
                f"{name} line {number} holds a {type(value).__name__}, not an object: {_short(line)}. "
                'Write every line as {"prompt": ..., "chosen": ..., "rejected": ...}.'
            )
        if len(lines) > 1:
            yield value
        else:
            yield from _rows_of_object(value, name)


def _rows_of_object(value: dict[str, Any], name: str) -> list[Row]:
    tables = [key for key, inner in value.items() if key in _TABLES and isinstance(inner, list)]
    if "chosen" in value or not tables:
        return [value]
    if len(tables) > 1:
        found = ", ".join(map(repr, tables))
        raise DatasetError(f"{name} holds several lists of rows ({found}). Keep one of them per file.")
    rows: list[Row] = value[tables[0]]
    return rows


def _parse_whole(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        line, column = getattr(error, "lineno", 1), getattr(error, "colno", 1)
        raise DatasetError(
            f"{name} line {line} is not valid JSON: {getattr(error, 'msg', error)} at column {column}. "
            "Mend that place, or write one object per line (JSONL)."
        ) from error


def _csv_rows(text: str, name: str, *, delimiter: str) -> Iterator[Row]:
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses fields above 128 KiB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(reader, [])
        twice = {column for column in header if header.count(column) > 1}
        if twice:
            raise DatasetError(f"{name} has the column {min(twice)!r} twice. Rename one of the two in its first line.")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DatasetError(
                    f"{name} line {reader.line_num} has {len(fields)} fields, but the header has {len(header)}. "
                    f"Put fields that contain {delimiter!r} or line breaks in double quotes."
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DatasetError(
            f"{name} line {reader.line_num} is not valid CSV: {error}. Mend the quotes of that line, or write JSONL."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(data: bytes, name: str) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise DatasetError(f"{name} is a broken parquet file: {_first_line(error)}. Write it again.") from error
    if table.num_rows == 0:
        raise DatasetError(f"{name} has no rows. Give at least one preference pair.")
    return Dataset(InMemoryTable(table))


def _bytes_of(path: Path, magic: bytes) -> bytes:
    if magic[:2] != b"\x1f\x8b":
        return path.read_bytes()
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is a broken gzip file: {error}. Compress it again.") from error
    if not data:
        raise DatasetError(f"{path} is empty inside its gzip. Give a file with one preference pair per line.")
    return data


def _text_of(data: bytes, name: str) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{name} is not text in UTF-8 (byte {error.start}, line {line}): a binary file, or another encoding. "
            f"Give it as {READABLE}, in UTF-8."
        ) from error
    if "\0" in text:
        raise DatasetError(f"{name} is a binary file, not text. Give it as {READABLE}.")
    return text


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _short(value: object, limit: int = 60) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
