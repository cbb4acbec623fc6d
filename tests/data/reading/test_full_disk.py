"""A disk that fills up leaves no temporary file, whatever was being written. A limit on a file's size stands for it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from preftune.data.conversion.write import PairWriter, Shape
from preftune.data.pairs.row_reader import Attempt
from preftune.data.reading.arrow_tables import _FileSink
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
                writer.write(Attempt(number, pair))
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
