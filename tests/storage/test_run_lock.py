"""Two processes that write into one folder, or one file: the second is refused, whatever the command."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from preftune.errors import ModelError, RequestError
from preftune.models.locate import locate
from preftune.storage.run_lock import FILE, locked, locked_file, writer_of
from tests.cli.command import pairs_file, preftune, tiny_model

__all__ = ["pairs_file", "preftune", "tiny_model"]

HOLDER = """
import sys, time
from preftune.storage.run_lock import locked, locked_file
with (locked if sys.argv[1] == "folder" else locked_file)(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(kind: str, place: Path) -> Iterator[int]:
    words = [sys.executable, "-c", HOLDER, kind, str(place)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield other.pid
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("words", "kind", "fix"),
    [
        (
            ["eval", "--model", "MODEL", "--judge", "shorter", "--baseline", "openai:m@http://localhost/v1"],
            "folder",
            "-o FOLDER",
        ),
        (["eval", "--model", "MODEL", "--suite", "xstest", "--suite_data", "PAIRS"], "folder", "-o FOLDER"),
        (["compare", "--model", "MODEL", "--data", "PAIRS", "--judge", "shorter"], "folder", "-o FOLDER"),
        (["demo"], "folder", "--output FOLDER"),
        (["sample", "--model", "MODEL", "--data", "PAIRS"], "file", "-o FILE"),
        (["label", "PAIRS", "--judge", "shorter"], "file", "-o FILE"),
        (["convert", "PAIRS"], "file", "-o FILE"),
    ],
)
def test_a_second_command_is_refused_with_who_holds_the_place(
    preftune, tiny_model, pairs_file, tmp_path: Path, words: list[str], kind: str, fix: str
) -> None:
    place = tmp_path / ("out.jsonl" if kind == "file" else "out")
    words = [{"MODEL": tiny_model, "PAIRS": pairs_file}.get(word, word) for word in words]
    with held_elsewhere(kind, place) as pid:
        result = preftune(*words, "--output" if words[0] == "demo" else "-o", place)
    assert result.code == 2, result.err
    assert f"another run (process {pid} on " in result.message
    assert f"is writing to {place}. Wait until it has ended, or name another {kind}: {fix}." in result.message


def test_what_a_lock_leaves(tmp_path: Path) -> None:
    with locked(tmp_path / "new"), locked(tmp_path / "new"), locked_file(tmp_path / "new" / "out.jsonl"):
        assert (tmp_path / "new" / FILE).exists()
    assert not (tmp_path / "new").exists(), "a folder that stayed empty"
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "result").touch()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["result"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="Nothing can be written to"), locked(tmp_path / "file"):
        pass


@pytest.mark.parametrize("saved", [False, True])
def test_a_model_that_is_still_trained_is_said_to_be(tmp_path: Path, saved: bool) -> None:
    """`eval` and `export` said "no config.json ... Did you mean checkpoint-64?"."""
    run = tmp_path / "run"
    (run / "checkpoint-64").mkdir(parents=True)
    if saved:
        (run / "checkpoint-64" / "config.json").write_text("{}")
        (run / "checkpoint-64" / "model.safetensors").write_bytes(b"")
    fix = f"name a checkpoint, the newest being {run}/checkpoint-64" if saved else "once it has saved one"
    with held_elsewhere("folder", run) as pid, pytest.raises(ModelError, match="still being written") as error:
        locate(run)
    assert f"(process {pid} on " in str(error.value)
    assert fix in str(error.value)
    with pytest.raises(ModelError, match=r"has no config\.json"):  # the holder was killed
        locate(run)
    with locked(run):
        assert writer_of(run) is None  # that is this process


def test_a_full_disk_is_reported_with_the_file_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("preftune.storage.run_lock.os.write", full)
    with pytest.raises(OSError, match="No space left") as error, locked_file(tmp_path / "out.jsonl"):
        pass
    assert error.value.filename == str(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
