"""A conversion whose disk is full: the message has the user's file, and nothing is left."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from preftune.storage import atomic
from tests.data.conversion.test_convert import ENDINGS, convert, rows_file


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_is_reported_with_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, at: str
) -> None:
    """The error named no path."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = rows_file(tmp_path, [{"prompt": "p", "chosen": "good", "rejected": "bad"}])
    output = tmp_path / "new" / f"out.{ending}"
    if at == "fsync":
        monkeypatch.setattr("preftune.data.conversion.write.os.fsync", full)
    else:
        place = "_ParquetRows.add" if ending == "parquet" else "gzip.GzipFile.write" if "gz" in ending else "os.fsync"
        monkeypatch.setattr(f"preftune.data.conversion.write.{place}", full)
    with pytest.raises(OSError, match="No space left") as error:
        convert(source, output)
    assert error.value.filename == str(output)
    assert list(output.parent.iterdir()) == []


def test_a_manifest_that_does_not_fit_leaves_the_earlier_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "c.jsonl"
    convert(rows_file(tmp_path, [{"prompt": "p", "chosen": "good", "rejected": "bad"}]), output)
    before = {path.name: path.read_bytes() for path in output.parent.iterdir()}

    def full(path: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "temporary_beside", full)
    with pytest.raises(OSError, match="No space left"):
        convert(rows_file(tmp_path, [{"prompt": "p", "chosen": "other", "rejected": "bad"}]), output, overwrite=True)
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == before
