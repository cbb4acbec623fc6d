"""The PandaLM example on a tiny model and made-up judgements: it splits by prompt and reports what it says it does."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

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
    assert result["above_choosing_the_longer"]["value"] == result["accuracy"]["value"]
    held_out = {row["prompt"] for row in made if example["is_held_out"](row["prompt"], 0.25)}
    assert result["held_out_prompts"] == len(held_out)
    assert result["held_out_pairs"] == sum(row["prompt"] in held_out for row in made)


@pytest.mark.sample(0)
def test_the_race_of_methods_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    data = tmp_path / "pairs.jsonl"
    made = [row for i in range(40) for row in rows(2, start=i)]
    data.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    output = tmp_path / "race"
    words = ["accuracy_race.py", "--data", data, "--model", save_tiny(tmp_path / "model"), "--output", output]
    words += ["--learning_rate", "2e-3", "--max_pairs", "24", "--methods", "dpo", "bco", "simpo", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    race = runpy.run_path(str(SCRIPT.parent / "accuracy_race.py"))
    race["main"]()
    result = json.loads((output / "race.json").read_text(encoding="utf-8"))
    known = [json.loads((output / f"seed{seed}.json").read_text(encoding="utf-8")) for seed in (0, 1)]
    assert not {*known[0]["prompts"]} & {*known[1]["prompts"]}  # another part is held out by each seed
    for method in result["methods"]:
        assert method["pairs"] == sum(len(one["prompts"]) for one in known)
        assert method["accuracy"]["value"] > 0.8
        assert method["longer"]["value"] == 0.0
        assert method["above_longer"]["value"] == method["accuracy"]["value"]
        assert (method["before_training"] is None) == (method["method"] != "simpo")
    dpo, bco, _ = result["methods"]
    assert bco["reference_scores"][0]["from_cache"] >= dpo["reference_scores"][0]["computed"]  # the rows are DPO's
    assert "| choose the longer answer |" in capsys.readouterr().out


def test_the_first_table_of_the_readme_is_that_of_the_result():
    result = json.loads((SCRIPT.parent / "result.json").read_text(encoding="utf-8"))
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(SCRIPT))["table"](result) in readme
    for text in (f"{100 * result['agreement_with_choosing_the_longer']:.1f}%", f"{result['mean_margin']:.2f}"):
        assert text in readme


def test_the_table_of_the_race_is_that_of_the_result(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    race = runpy.run_path(str(SCRIPT.parent / "accuracy_race.py"))
    result = json.loads((SCRIPT.parent / "race.json").read_text(encoding="utf-8"))
    readme = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    assert race["table"](result) in readme
    scores = [one for method in result["methods"] for one in method["reference_scores"]]
    computed = sum(one["computed"] for one in scores)
    found = sum(one["from_cache"] for method in result["methods"][1:] for one in method["reference_scores"])
    assert f"scored {computed} completions for all {len(scores)} trainings" in " ".join(readme.split())
    assert f"{found:,} scores in the cache" in readme
