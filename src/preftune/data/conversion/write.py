"""Writes pairs to a file in canonical form: JSONL (also .gz) or Parquet. The same pairs give the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from preftune.data.formats.apply import RATINGS
from preftune.data.pairs.canonical_row import CANONICAL_ROW, canonical_row, with_json_texts
from preftune.data.pairs.row_reader import Attempt
from preftune.errors import ConfigError
from preftune.storage.atomic import naming, sha256_of, sweep_beside, temporary_beside
from preftune.types import Text

_WRITABLE = (".jsonl", ".ndjson", ".parquet", ".jsonl.gz", ".ndjson.gz")
_ROWS = 1000
"""Number of rows in a row group of Parquet."""


class Shape:
    """The columns of a file, and whether their sides are text, plain turns or both."""

    def __init__(self) -> None:
        self.columns: set[str] = {"prompt", "chosen", "rejected"}
        self.texts = False
        self.turns = False
        self.plain = True
        """Whether turns have only role and content."""

    def add(self, row: dict[str, Any]) -> None:
        """Widens the shape to hold a canonical row."""
        self.columns.update(name for name, value in row.items() if value is not None)
        self.texts |= isinstance(row["chosen"], str)
        self.turns |= isinstance(row["chosen"], list)
        self.plain = self.plain and all(_plain(row[side]) for side in ("prompt", "chosen", "rejected"))

    def widen(self, other: Shape) -> None:
        """Widens the shape to hold what another holds."""
        self.columns |= other.columns
        self.texts |= other.texts
        self.turns |= other.turns
        self.plain = self.plain and other.plain

    @property
    def names(self) -> list[str]:
        return [name for name in CANONICAL_ROW if name in self.columns]


def _plain(side: Text) -> bool:
    return isinstance(side, str) or all(turn.keys() == {"role", "content"} for turn in side)


def check_output(path: Path) -> None:
    """Raises: ConfigError, if a file of this name cannot be written."""
    if not path.name.endswith(_WRITABLE):
        raise ConfigError(
            f"The name {path} does not determine the file format. Give it one of the endings {', '.join(_WRITABLE)} "
            "(csv, a table of plain texts, has no place for conversations)."
        )
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name the file to write in it, such as {path / 'pairs.jsonl'}.")


def beside(path: Path, word: str) -> Path:
    """`pairs.jsonl.gz` -> `pairs.WORD.jsonl.gz`."""
    ending = max((ending for ending in _WRITABLE if path.name.endswith(ending)), key=len)
    return path.with_name(f"{path.name.removesuffix(ending)}.{word}{ending}")


class Part(NamedTuple):
    """Pairs, ready to be written."""

    pairs: int
    lines: bytes
    rows: list[dict[str, Any]]
    """For Parquet, in place of lines."""


def part_of(attempts: Sequence[Attempt], shape: Shape, *, parquet: bool) -> Part:
    """Rows with pairs, as they are written to a file of this shape."""
    rows = [canonical_row(a.pair, a.strength, a.ratings, a.gold) for a in attempts if a.pair is not None]
    if parquet:
        return Part(len(rows), b"", rows)
    names = shape.names
    lines = [json.dumps({name: row.get(name) for name in names}, ensure_ascii=False, allow_nan=False) for row in rows]
    return Part(len(rows), "".join(f"{line}\n" for line in lines).encode("utf-8"), [])


class PairWriter:
    """Writes a file under a temporary name; `keep` renames it, and otherwise it is removed."""

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path = path
        self.shape = shape
        self.pairs = 0
        sweep_beside(path)
        self._temporary = temporary_beside(path)
        self._file: Any = self._temporary.open("wb")
        self._lines: Any = None
        self._table: _ParquetRows | None = None
        if path.name.endswith(".parquet"):
            self._table = _ParquetRows(self._file, shape)
        elif path.name.endswith(".gz"):
            self._lines = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0)
        else:
            self._lines = self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._table is not None:
            self._table.abandon()
        try:
            with naming(self.path):
                self._file.close()  # writes what is buffered, which a full disk refuses
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, part: Part) -> None:
        self.pairs += part.pairs
        with naming(self.path):
            if self._table is None:
                self._lines.write(part.lines)
                return
            for row in part.rows:
                self._table.add(row)

    def finish(self) -> dict[str, Any]:
        """Completes the file and describes it: name, pairs, bytes, sha256."""
        with naming(self.path):
            if self._table is not None:
                self._table.close()
            elif self._lines is not self._file:
                self._lines.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return {
            "file": self.path.name,
            "pairs": self.pairs,
            "bytes": self._temporary.stat().st_size,
            "sha256": sha256_of(self._temporary),
        }

    def keep(self) -> None:
        """Gives the finished file its name."""
        with naming(self.path):
            os.replace(self._temporary, self.path)


class _ParquetRows:
    """Collects rows for a Parquet file."""

    def __init__(self, file: Any, shape: Shape) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._as_text = not (shape.turns and not shape.texts and shape.plain)
        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        side = pa.string() if self._as_text else pa.list_(message)
        types = dict.fromkeys(CANONICAL_ROW, pa.string())
        types |= dict.fromkeys(("prompt", "chosen", "rejected"), side)
        types |= dict.fromkeys(("weight", "margin", "agreement", "strength", *RATINGS), pa.float64())
        self._schema = pa.schema([(name, types[name]) for name in shape.names])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        texts = with_json_texts(row)
        if not self._as_text:
            texts |= {side: row[side] for side in ("prompt", "chosen", "rejected")}
        self._rows.append(texts)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Closes the writer after an error; otherwise pyarrow prints one more when it is collected."""
        with contextlib.suppress(Exception):
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def outputs_of(path: Path, *, split: bool) -> Sequence[Path]:
    """Every file that an output to `path` creates: the pairs, the held-out pairs, the manifest."""
    manifest = path.with_name(f"{path.name}.manifest.json")
    return (path, beside(path, "held-out"), manifest) if split else (path, manifest)
