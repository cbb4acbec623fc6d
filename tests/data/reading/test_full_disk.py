"""A disk that fills up leaves no temporary file, whatever was being written. A limit on a file's size stands for it."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preftune.data.conversion.write import PairWriter, Shape, part_of
from preftune.data.pairs.row_reader import Attempt
from preftune.data.reading import arrow_tables, files
from preftune.data.reading.arrow_tables import _FileSink
from preftune.data.reading.load import load_rows
from preftune.errors import DatasetError
from preftune.storage.atomic import write_whole
from preftune.storage.jsonl import append_lines, prepare_folder
from preftune.storage.run_directory import append_line
from preftune.types import PreferencePair


@contextmanager
def full(size: int = 64) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
@pytest.mark.parametrize("length", [50, 100_000], ids=["in the buffer until it is closed", "at once"])
def test_pairs(length: int, name: str, tmp_path: Path) -> None:
    pair = PreferencePair(prompt="a" * length, chosen="b" * length, rejected="c" * length)
    shape = Shape()
    shape.add({"prompt": "", "chosen": "", "rejected": ""})

    def convert() -> None:
        with full(), PairWriter(tmp_path / name, shape) as writer:
            for number in range(3):
                writer.write(part_of([Attempt(number, pair)], shape, parquet=name.endswith("parquet")))
            writer.finish()

    with pytest.raises(OSError, match="too large"):
        convert()
    assert not list(tmp_path.iterdir())


def test_rows_kept_as_a_table(tmp_path: Path) -> None:
    def keep() -> None:
        with full(), _FileSink(tmp_path / "rows.arrow") as sink:
            sink.add(pa.table({"x": ["a" * 1000] * 1000}))

    with pytest.raises(OSError, match="too large"):
        keep()
    assert not list(tmp_path.iterdir())


ROWS = [{"prompt": f"{number}?" * 50, "chosen": "a" * 50, "rejected": "b"} for number in range(3000)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "-"])
def test_rows_that_are_too_large_for_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "x.jsonl").write_text(text)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for module in (arrow_tables, files):
        monkeypatch.setattr(module, "MOST_IN_MEMORY", 1000)
    says = r"The rows cannot be written to /.*File too large.*Set TMPDIR to a folder with more room"
    with pytest.raises(DatasetError, match=says), full():
        load_rows(name if name == "-" else tmp_path / name)


def test_a_parquet_file_that_datasets_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    monkeypatch.setattr(files, "_LARGE", 0)
    says = "cannot be written to the cache of datasets.*Set HF_DATASETS_CACHE to a folder with more room"
    with pytest.raises(DatasetError, match=says), full(20_000):
        load_rows(tmp_path / "x.parquet")


def test_small_files(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.json", b"old")
    with pytest.raises(OSError, match="too large"), full():
        write_whole(tmp_path / "x.json", b"new" * 1000)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_what_only_grows_names_its_file(tmp_path: Path) -> None:
    record = {"x": "new" * 1000}
    for append in (lambda file: append_lines(file, [record]), lambda file: append_line(file, record)):
        with pytest.raises(OSError, match="too large") as told, full():
            append(tmp_path / "x.jsonl")
        assert told.value.filename == str(tmp_path / "x.jsonl")


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "eval")
    assert not list((tmp_path / "eval").iterdir())
