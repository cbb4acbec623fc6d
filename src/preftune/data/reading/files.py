"""Local files -> rows: jsonl, json, csv, tsv and parquet, each also gzipped. Errors name file and line."""

from __future__ import annotations

import errno
import gzip
import io
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.data.reading.arrow_tables import (
    MOST_IN_MEMORY,
    cached_table,
    dataset_of,
    kept_table,
    spill_file,
    spilling,
)
from preftune.data.reading.class_names import classes_in, named
from preftune.data.reading.text_files import GZIP, Row, read_rows, text_rows
from preftune.errors import DatasetError
from preftune.log import warn

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}

_LARGE = 512 * 2**20
"""Size in bytes from which the table of a file is kept for the next run."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def kind_of(path: Path) -> str | None:
    """'json', 'csv' or 'parquet' by the file's name without .gz; None if the name does not determine it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def read_file(path: Path) -> Dataset:
    """Reads one local file, through a table on disk that is mapped into memory unless it is small.

    Raises:
        DatasetError: the file is empty, binary, broken (with its line), or of an unknown kind.
    """
    name = str(path)
    if is_pipe(path):
        return _read_pipe(path, name)
    size, kind = _size_and_kind(path)
    if kind == "parquet":
        return _read_parquet(path, name, mapped=size >= _LARGE)
    if size < _LARGE:
        return dataset_of(lambda: text_rows(path, kind, tabs=_is_tsv(path)), name)
    kept = cached_table(path)
    try:
        found = kept_table(kept)
        if found is None:
            found = dataset_of(lambda: text_rows(path, kind, tabs=_is_tsv(path)), name, file=kept)
    except OSError as error:
        warn(f"Rows are not kept for the next run: {kept.parent} cannot be used ({error.strerror or error}).")
        return dataset_of(lambda: text_rows(path, kind, tabs=_is_tsv(path)), name)
    return found


def is_pipe(path: Path) -> bool:
    """Whether a path is a pipe (such as the shell's `<(...)`), which can be read only once and has no known size."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


def _read_pipe(path: Path, name: str) -> Dataset:
    """The rows of a pipe: JSONL, JSON or parquet, also gzipped."""
    try:
        with path.open("rb") as file:
            begins = file.peek(4)[:4]
            if begins == b"PAR1" or begins[:2] == GZIP:
                return _of_bytes(file.read(), name)
            return from_rows(read_rows(file, name, None), name)
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}. Write the data to a file.") from error


def _of_bytes(data: bytes, name: str) -> Dataset:
    """Rows of parquet, or of anything gzipped."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    zipped = data[:2] == GZIP
    unpacked: Any = gzip.GzipFile(fileobj=io.BytesIO(data)) if zipped else io.BytesIO(data)
    if zipped and unpacked.peek(4)[:4] != b"PAR1":
        return from_rows(read_rows(unpacked, name, None, zipped=True), name)
    with _parquet_errors(name):
        return Dataset(InMemoryTable(pq.read_table(pa.BufferReader(unpacked.read()))))


def stream_file(path: Path) -> Iterator[Row]:
    """Yields the rows of one local file without keeping them. Raises: as `read_file`."""
    _, kind = _size_and_kind(path)
    if kind == "parquet":
        yield from _stream_parquet(path, str(path))
    else:
        yield from text_rows(path, kind, tabs=_is_tsv(path))


def _is_tsv(path: Path) -> bool:
    return ".tsv" in (suffix.lower() for suffix in path.suffixes)


def from_rows(rows: Iterable[Row], name: str) -> Dataset:
    """A Dataset of rows that may differ in keys and types of values.

    `Dataset.from_list` keeps only the first row's keys and refuses a column that mixes texts and messages.
    """
    listed = list(rows)
    return dataset_of(lambda: listed, name)


def _size_and_kind(path: Path) -> tuple[int, str | None]:
    name = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}. Check the path and its permissions.") from error
    if size == 0:
        raise DatasetError(f"{name} is empty. Give a file with one preference pair per line.")
    if magic[:2] == GZIP:
        magic = _inside(path)
    kind = "parquet" if magic == b"PAR1" else kind_of(path)
    if kind == "parquet" and magic != b"PAR1":
        raise DatasetError(f"{name} is not a parquet file (it does not begin with PAR1). Check how it was written.")
    return size, kind


def _inside(path: Path) -> bytes:
    """The first bytes inside a gzipped file."""
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is a broken gzip file: {error}. Compress it again.") from error
    if not magic:
        raise DatasetError(f"{path} is empty inside its gzip. Give a file with one preference pair per line.")
    return magic


def _read_parquet(path: Path, name: str, *, mapped: bool) -> Dataset:
    from datasets import Dataset, load_dataset
    from datasets.table import InMemoryTable

    with _parquet_errors(name):
        opened = _open_parquet(path)
        held = sum(opened.metadata.row_group(at).total_byte_size for at in range(opened.metadata.num_row_groups))
        if (mapped or held >= 2 * _LARGE) and not _is_gzip(path):
            return load_dataset("parquet", data_files=name, split="train")
        if opened.metadata.num_rows == 0:
            raise DatasetError(f"{name} has no rows. Give at least one.")
        if held > MOST_IN_MEMORY:
            return _unpacked(opened)
        return Dataset(InMemoryTable(opened.read()))


def _unpacked(opened: Any) -> Dataset:
    """The table of a parquet file in a file that is mapped into memory, and ends with the process."""
    import pyarrow as pa
    from datasets import Dataset

    file = spill_file()
    with spilling():
        writer = pa.ipc.new_stream(file, opened.schema_arrow)
    try:
        for batch in opened.iter_batches(batch_size=1000):
            with spilling():
                writer.write_batch(batch)
    finally:
        with spilling():
            writer.close()
    return Dataset.from_file(str(file))


def _stream_parquet(path: Path, name: str) -> Iterator[Row]:
    from datasets import Features

    with _parquet_errors(name):
        opened = _open_parquet(path)
        classes = classes_in(Features.from_arrow_schema(opened.schema_arrow))
        for batch in opened.iter_batches(batch_size=1000):
            table = batch.to_pydict()
            columns = {**table, **named(classes, table)}
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(gzip.decompress(path.read_bytes())) if _is_gzip(path) else path)


@contextmanager
def _parquet_errors(name: str) -> Iterator[None]:
    import pyarrow as pa
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error, DatasetGenerationError) as error:
        if isinstance(error, DatasetError):
            raise
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            raise DatasetError(
                f"The rows of {name} cannot be written to the cache of datasets ({cause.strerror or cause}). Set "
                "HF_DATASETS_CACHE to a folder with more room."
            ) from error
        raise DatasetError(f"{name} is a broken parquet file: {_first_line(cause)}. Write it again.") from error


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
