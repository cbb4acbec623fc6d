"""Every command refuses an output path that no library can write to, before it reads anything."""

from __future__ import annotations

import os

import pytest

from preftune.cli.main import main

_BAD = os.fsdecode(b"surr\xff")


@pytest.mark.parametrize(
    "line",
    [
        "audit x -o",
        "compare --model x --data y --judge exact -o",
        "convert x.jsonl -o",
        "convert-recipe x -o",
        "demo --output",
        "dpo --model x --data y --output_dir",
        "eval --model x --prompts y --judge exact -o",
        "export x -o",
        "judge-check x --judge exact -o",
        "label x --judge exact -o",
        "launch -- sft --model x --data y --output_dir",
        "merge x -o",
        "report x -o",
        "sample --model x --data y -o",
        "score dpo --model x --data y --output_dir",
        "sweep x -o",
    ],
)
def test_a_path_that_is_not_utf_8_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), _BAD]) == 2
    said = capsys.readouterr().err
    assert r"='surr\udcff' is not valid UTF-8" in said
    assert "Choose another one: --output" in said
