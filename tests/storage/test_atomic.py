from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from preftune.storage.atomic import ABANDONED_S, whole_folder, write_whole


def test_a_file_is_replaced_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    before = os.umask(0o027)
    try:
        for text in (b"first", b"second"):
            write_whole(path, text)
            assert path.read_bytes() == text
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError) as caught:
        write_whole(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_no_file_names_the_file_and_not_the_temporary_one(tmp_path: Path, monkeypatch) -> None:
    def refused(*words: object) -> int:
        raise PermissionError(13, "Permission denied", words[0])

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError) as caught:
        write_whole(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")


def _fill(folder: Path, text: str, **options: Any) -> None:
    with whole_folder(folder, **options) as partial:
        assert partial.parent == folder.parent
        (partial / "file").write_text(text)
        assert not (folder / "file").exists() or (folder / "file").read_text() != text


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    with pytest.raises(KeyError), whole_folder(folder):
        raise KeyError
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    _fill(folder, "first")
    with pytest.raises(OSError):
        _fill(folder, "second")
    assert (folder / "file").read_text() == "first"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_faster_process_wins_and_a_broken_leftover_goes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _fill(folder, "first")
    _fill(folder, "second", kept=lambda found: True)
    assert (folder / "file").read_text() == "first"
    _fill(folder, "second", kept=lambda found: False)
    assert (folder / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_killed_writers_left_is_removed_once_no_writer_can_be_alive(tmp_path: Path) -> None:
    old, alive = tmp_path / ".out-00000000", tmp_path / ".out-11111111"
    for folder in (old, alive):
        folder.mkdir()
        (folder / "weights").write_text("x")
    file, own = tmp_path / ".out-22222222", tmp_path / ".out-backup"
    for path in (file, own):
        path.write_text("x")
    past = time.time() - 2 * ABANDONED_S
    for path in (old / "weights", old, alive, file, own):  # a file in the second is new
        os.utime(path, (past, past))
    with whole_folder(tmp_path / "out") as partial:
        (partial / "weights").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-11111111", ".out-backup", "out"]
