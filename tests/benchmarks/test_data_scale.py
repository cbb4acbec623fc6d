"""The benchmark of the data layer, with few pairs and a tiny tokenizer: it runs, and says what it promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import data_scale
import pytest

from preftune.data import load_pairs
from preftune.data.tokens.cache import LEAST_PAIRS
from tiny import save_tiny


def test_generated_pairs_are_distinct_and_of_the_size_of_hh(tmp_path: Path) -> None:
    data_scale.write_pairs(tmp_path / "a.jsonl", 1500)
    data_scale.write_pairs(tmp_path / "b.jsonl", 1500)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == 1500
    sides = [len(json.loads(line)["chosen"]) for line in lines]
    assert sum(sides) / len(sides) == pytest.approx(650, rel=0.15)
    pairs = load_pairs(tmp_path / "a.jsonl")
    assert all(pair.prompt and pair.chosen != pair.rejected for pair in pairs)


@pytest.mark.sample(0)
def test_all_passes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "tiny")
    words = ["data_scale.py", "--pairs", str(LEAST_PAIRS), "--model", model, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert data_scale.main() == 0
    result = json.loads((tmp_path / "data_scale.json").read_text(encoding="utf-8"))
    first, second = result["passes"]["first"], result["passes"]["second"]
    assert (first["recalled"], second["recalled"]) == (False, True)
    assert first["fingerprint"] == second["fingerprint"]
    assert first["groups"] + first["dropped"] == LEAST_PAIRS
    assert result["passes"]["audit"]["pairs"] == LEAST_PAIRS
    assert "a second time in" in capfd.readouterr().out
