"""Rows that may differ in keys and types of values -> an Arrow table, a thousand rows at a time.

A column of texts, booleans or numbers keeps its type; everything else (messages, lists, texts mixed with messages) is
kept as JSON, unchanged: Arrow's own types would turn 1 into 1.0 next to 0.5, and give every object the keys of all
others."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

from preftune.amounts import of_type
from preftune.data.reading.half_pairs import HalfPairs
from preftune.data.reading.text_files import short
from preftune.errors import DatasetError
from preftune.log import warn
from preftune.storage.atomic import sweep
from preftune.storage.cache_folder import cache_folder, make_private
from preftune.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Row: TypeAlias = Mapping[str, Any]
Kind: TypeAlias = Literal["null", "bool", "int", "float", "string", "json"]

_CHUNK = 1000
_DIGEST = 16
"""Length in bytes of the digest after a kept table."""
MOST_IN_MEMORY = 2**22
"""Size in bytes from which a table is written to a file and mapped, so that rows are not held in memory."""
_DOUBTFUL = re.compile(r"\d{19}|NaN|Infinity")
"""Values that a reader of JSON may refuse."""
_KINDS: Mapping[type, Kind] = {str: "string", bool: "bool", int: "int", float: "float", type(None): "null"}


def dataset_of(rows: Callable[[], Iterable[Row]], name: str, *, file: Path | None = None) -> Dataset:
    """Makes a dataset of rows.

    Args:
        rows: yields the rows; called a second time if the types of the first thousand rows do not fit all rows.
        name: name of the data in messages.
        file: file for the table, which is mapped into memory; None to hold it in memory.
    Raises:
        DatasetError: no rows, or a row that is not an object.
    """
    kinds: dict[str, Kind] = {}
    settled: Dataset | None = None
    while settled is None:  # a second time with the kinds of all rows
        settled = _try_write(rows, name, kinds, file)
    return settled


def json_array(values: Sequence[Any]) -> pa.Array:
    """Values in Arrow's form of JSON; None stays null."""
    import pyarrow as pa

    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(list(map(json_text, values)), pa.string()))


def json_text(value: Any) -> str | None:
    """A value as a cell of a column of type `datasets.Json`, which would read the text "4" as the number 4.

    Values that the library's reader of JSON refuses (whole numbers beyond 64 bits) are kept as JSON text.
    """
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    if _DOUBTFUL.search(text):
        from datasets.utils.json import ujson_loads

        try:
            ujson_loads(text)
        except ValueError:
            return json.dumps(text, ensure_ascii=False)
    return text


def _plain(value: Any) -> Any:
    """Converts numpy numbers and dates, which rows of a list may hold, to JSON values."""
    for method in ("tolist", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"a {type(value).__name__}")


def spill_file() -> Path:
    """A file for a table that is too large for memory, removed when the process ends. Raises: DatasetError."""
    with spilling():
        folder = Path(tempfile.mkdtemp(prefix="preftune-rows-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "rows.arrow"


@contextmanager
def spilling() -> Iterator[None]:
    """Names the folder and the remedy where rows cannot be written to a temporary file. Raises: DatasetError."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"The rows cannot be written to {tempfile.tempdir or 'a folder for temporary files'}, where those that are "
            f"too large for memory are kept ({error.strerror or error}). Set TMPDIR to a folder with more room."
        ) from error


def cached_table(path: Path) -> Path:
    """The path under which the table of a large file is kept; a different or changed file gets a different path.

    The path depends on the change time of the inode too, because unpacking and copying restore the modification time.
    """
    stat = path.stat()
    facts = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {__version__}"
    return cache_folder() / "rows" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.arrow"


def kept_table(file: Path) -> Dataset | None:
    """A table that was written before; None if there is none, or if it is damaged and therefore removed."""
    from datasets import Dataset

    if not file.is_file():
        return None
    if not is_sound(file):
        warn(f"The kept rows in {file.name} are damaged, and are read again from the source.")
        file.unlink(missing_ok=True)
        return None
    return Dataset.from_file(str(file))


def is_sound(file: Path) -> bool:
    """Whether a sealed file is as it was written."""
    size = max(0, file.stat().st_size - _DIGEST)
    with file.open("rb") as opened:
        opened.seek(size)
        return opened.read() == _digest(opened, size)


def seal(file: str | Path) -> None:
    """Adds a digest behind the end that an Arrow stream says of itself."""
    with open(file, "r+b") as opened:
        digest = _digest(opened, os.path.getsize(file))
        opened.seek(0, os.SEEK_END)
        opened.write(digest)


def _digest(opened: BinaryIO, size: int) -> bytes:
    """Digest of the first `size` bytes; Arrow has no checksums, and would not notice a changed byte."""
    import xxhash

    digest = xxhash.xxh3_128()
    opened.seek(0)
    while size > 0 and (part := opened.read(min(size, 1 << 22))):
        digest.update(part)
        size -= len(part)
    return digest.digest()


def _try_write(
    rows: Callable[[], Iterable[Row]], name: str, kinds: dict[str, Kind], file: Path | None
) -> Dataset | None:
    """The dataset; None if a column had another kind in later rows, with all kinds in `kinds`."""
    sink: _Sink = _FileSink(file) if file is not None else _MemorySink()
    count, halves = 0, HalfPairs(name)
    with sink:
        for chunk in _chunks(rows(), name):
            changed = _join(kinds, chunk, name)
            if changed and count:
                sink.give_up()
            if not sink.given_up:
                sink.add(_table(chunk, kinds, halves, count))
            count += len(chunk)
        if sink.given_up:
            return None
        if not count:
            raise DatasetError(f"{name} has no rows. Give at least one.")
        halves.warn_once()
        return sink.dataset()


def _chunks(rows: Iterable[Row], name: str) -> Iterator[list[Row]]:
    count, iterator = 0, iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        for number, row in enumerate(chunk, start=count):
            check_row(row, name, number)
        yield chunk
        count += len(chunk)


def check_row(row: object, name: str, number: int) -> None:
    """Raises: DatasetError for a row without columns."""
    if not isinstance(row, Mapping):
        raise DatasetError(
            f"{name} row {number} is {of_type(row)}, not an object with columns: {short(row)}. "
            'Give every row as {"prompt": ..., "chosen": ..., "rejected": ...}.'
        )


def _join(kinds: dict[str, Kind], chunk: Sequence[Row], name: str) -> bool:
    """Widens the kinds to hold a chunk; returns whether that changed them."""
    before = dict(kinds)
    for row in chunk:
        for key, value in row.items():
            if str(key) not in kinds and not _encodable(str(key)):
                raise DatasetError(
                    f"The name {str(key)!a} of a column of {name} holds half of a surrogate pair, which is not a "
                    "character. Correct its name."
                )
            known, found = kinds.get(str(key)), _kind(value)
            if known != found:
                kinds[str(key)] = _wider(known, found)
    return kinds != before


def _kind(value: Any) -> Kind:
    kind = _KINDS.get(type(value), "json")
    return "json" if kind == "int" and not -(2**63) <= value < 2**63 else kind


def _wider(one: Kind | None, other: Kind) -> Kind:
    if one is None or one == "null" or one == other:
        return other
    if other == "null":
        return one
    return "float" if {one, other} == {"int", "float"} else "json"


def _table(chunk: Sequence[Row], kinds: Mapping[str, Kind], halves: HalfPairs, start: int) -> pa.Table:
    import pyarrow as pa

    schema = _schema(kinds)
    arrays = []
    for key in kinds:
        values = [row.get(key) for row in chunk]
        try:
            try:
                arrays.append(_array(values, kinds[key], schema.field(key).type))
            except UnicodeEncodeError:
                values = [halves.replaced(one, f"row {start + at}, column {key!r}") for at, one in enumerate(values)]
                arrays.append(_array(values, kinds[key], schema.field(key).type))
        except (TypeError, ValueError, RecursionError, pa.ArrowException) as error:
            raise DatasetError(
                f"{halves.name}, column {key!r}, rows {start} to {start + len(chunk) - 1}: a value is not a text, "
                f"number, boolean, list or object ({' '.join(str(error).split())[:120]}). Convert it to one of these."
            ) from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], kind: Kind, type: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return json_array(values) if kind == "json" else pa.array(values, type)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _schema(kinds: Mapping[str, Kind]) -> pa.Schema:
    from datasets import Features, Json, Value

    types = {"null": "null", "bool": "bool", "int": "int64", "float": "float64", "string": "string"}
    features = Features({key: Json() if kind == "json" else Value(types[kind]) for key, kind in kinds.items()})
    return features.arrow_schema


class _Sink:
    """Collects tables, until they are found not to fit together."""

    given_up = False

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *error: object) -> None: ...

    def add(self, table: pa.Table) -> None: ...

    def give_up(self) -> None:
        self.given_up = True

    def dataset(self) -> Dataset:
        raise NotImplementedError


class _MemorySink(_Sink):
    """Tables in memory; in a file that ends with the process, once they are larger than memory should hold."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self._bytes = 0
        self._file: _FileSink | None = None

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with spilling():
                self._file.__exit__(*error)

    def add(self, table: pa.Table) -> None:
        self.tables.append(table)
        self._bytes += table.nbytes
        if self._bytes > MOST_IN_MEMORY:
            self._move()

    def give_up(self) -> None:
        super().give_up()
        self.tables.clear()

    def dataset(self) -> Dataset:
        import pyarrow as pa
        from datasets import Dataset
        from datasets.table import InMemoryTable

        if self._file is not None:
            self._move()
            with spilling():
                return self._file.dataset()
        return Dataset(InMemoryTable(pa.concat_tables(self.tables)))

    def _move(self) -> None:
        """Writes the tables to the file."""
        if self._file is None:
            self._file = _FileSink(spill_file(), sealed=False)
            with spilling():
                self._file.__enter__()
        with spilling():
            for table in self.tables:
                self._file.add(table)
        self.tables.clear()
        self._bytes = MOST_IN_MEMORY  # each further table is written at once


class _FileSink(_Sink):
    """An Arrow file that is either complete under its name or absent."""

    def __init__(self, file: Path, *, sealed: bool = True) -> None:
        """
        Args:
            sealed: whether the file outlives the process, so that another one must see whether it is whole.
        """
        self.file, self.sealed = file, sealed
        self.writer: Any = None

    def __enter__(self) -> _FileSink:
        make_private(self.file.parent)
        sweep(self.file.parent)
        handle, self.temporary = tempfile.mkstemp(dir=self.file.parent, prefix=".writing-")
        os.close(handle)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self.writer is not None:
                self.writer.close()  # writes what is buffered, which a full disk refuses
        finally:
            Path(self.temporary).unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        import pyarrow as pa

        if self.writer is None:
            self.writer = pa.ipc.new_stream(self.temporary, table.schema)
        self.writer.write_table(table)

    def dataset(self) -> Dataset:
        from datasets import Dataset

        self.writer.close()
        self.writer = None
        if self.sealed:
            seal(self.temporary)
        os.replace(self.temporary, self.file)
        return Dataset.from_file(str(self.file))
