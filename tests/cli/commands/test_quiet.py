"""The log of a training: a few lines before the first step, the rest in run.json, and nothing of other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preftune import log
from tiny import chat_rows, save_tiny

OTHERS = ("Loading weights", "Writing model shards", "kernels-community", "gemm_4bit", "MISSING", "Warning")
AT_MOST = 8
RULE = "def long(prompt, answer, row):\n    return float(len(answer))\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model", hidden_size=64)
    pairs = chat_rows(24)
    pairs.append({**pairs[1], "rejected": pairs[1]["chosen"]})
    write(tmp_path / "pairs.jsonl", pairs)
    write(tmp_path / "sft.jsonl", [{"messages": row["prompt"] + row["chosen"]} for row in pairs])
    (tmp_path / "rules.py").write_text(RULE, encoding="utf-8")
    return tmp_path


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def said(folder: Path, *words: str) -> list[str]:
    """What a command line prints, in a process of its own, where the libraries say what they say once."""
    code = "import sys; from preftune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = (*words, "--model", "model", "--use_peft", "--output_dir", "run", "--max_steps", "1", "--no_report")
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PREFTUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def notes(folder: Path) -> list[str]:
    return list(json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["notes"])


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "words",
    [
        ("dpo", "--data", "pairs.jsonl", "--eval_fraction", "0.1", "--load_in_4bit"),
        ("sft", "--data", "sft.jsonl"),
        ("reward", "--data", "pairs.jsonl"),
        ("ppo", "--data", "pairs.jsonl", "--reward_model", "rule:rules:long", "--max_new_tokens", "4"),
        ("online", "--data", "pairs.jsonl", "--judge", "rule:rules:long", "--max_new_tokens", "4"),
    ],
    ids=lambda words: words[0],
)
def test_a_few_lines_before_the_first_step_and_the_rest_in_the_record(words, folder):
    lines = said(folder, *words)
    shown = [line.removeprefix("preftune: ") for line in lines if line.startswith("preftune: ")]
    assert len(shown) <= AT_MOST, shown
    assert not [line for line in lines if any(word in line for word in OTHERS)]
    assert any(line.startswith("writing to run") for line in shown)
    kept = notes(folder)
    assert set(shown) <= set(kept)
    assert any(note.startswith("self-check: ") for note in kept)


@pytest.mark.sample(0)
def test_verbose_shows_them_all(folder):
    lines = said(folder, "dpo", "--data", "pairs.jsonl", "--verbose")
    kept = notes(folder)
    assert any(note.startswith("self-check: ") for note in kept)
    assert [line.removeprefix("preftune: ") for line in lines if line.startswith("preftune: ")] == kept


def test_notes_hold_no_secret_and_are_taken_once(monkeypatch):
    log.take_notes()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "abcdefghij" * 4)
    log.detail("a line with hf_" + "abcdefghij" * 4)
    log.say("another\x1b[31m")
    first, second = log.take_notes()
    assert "abcdefghij" not in first
    assert second == "another"
    assert log.take_notes() == []
