"""Command lines run in this process, a model small enough to train in a second, and pairs for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from preftune.cli.main import main
from tiny import chat_rows, save_tiny


class Result(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The last line of standard error: the paragraph, when there is one."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


@pytest.fixture
def preftune(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Llama as a folder on disk."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def pairs_file(tmp_path: Path) -> str:
    """Sixteen conversational pairs over eight prompts, as JSON lines."""
    return write_rows(tmp_path / "pairs.jsonl", [pair(index) for index in range(16)])


def pair(index: int) -> dict[str, Any]:
    """One row; eight different prompts, then again."""
    return chat_rows(8)[index % 8]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a JSON lines file; its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
