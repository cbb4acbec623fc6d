"""The PandaLM example on a tiny model and made-up judgements: it splits by prompt and reports what it says it does."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from tiny import rows, save_tiny

SCRIPT = Path(__file__).parents[2] / "examples/pandalm/train.py"


def test_the_example_runs_and_reports_the_length_baseline(tmp_path, monkeypatch):
    data = tmp_path / "pairs.jsonl"
    made = [row for i in range(40) for row in rows(2, start=i)]  # prompts repeat
    data.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    model = save_tiny(tmp_path / "model")
    output = tmp_path / "run"
    words = ["train.py", "--data", data, "--model", model, "--output", output, "--learning_rate", "2e-3"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    example = runpy.run_path(str(SCRIPT))
    example["main"]()
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    assert result["training_pairs"] + result["held_out_pairs"] == len(made)
    assert result["accuracy_of_choosing_the_longer"]["value"] == 0.0  # the short answer is always the better one here
    assert result["accuracy"]["value"] > 0.9
    held_out = {row["prompt"] for row in made if example["is_held_out"](row["prompt"], 0.25)}
    assert result["held_out_prompts"] == len(held_out)
    assert result["held_out_pairs"] == sum(row["prompt"] in held_out for row in made)
