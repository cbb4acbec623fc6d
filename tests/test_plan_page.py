"""docs/plan.md: its commands run, its example is what the command prints, its table is the benchmark's result."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from preftune.cli.main import main
from preftune.cli.recipes.plan import _DEVICES
from preftune.plan.devices import CARDS
from tiny import rows, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (preftune .*)$", re.sub(r"^```.*?^```$", "", PAGE, flags=re.M | re.S), re.M)
RESULT = ROOT / "benchmarks" / "results" / "plan_memory.json"
SMOLLM3: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def test_the_commands_run_and_the_example_is_what_is_printed(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("preftune.plan.settings.flash_groups_heads", lambda: True)
    AutoConfig.for_model("smollm3", **SMOLLM3).save_pretrained("SmolLM3-3B")
    tiny_tokenizer().save_pretrained("SmolLM3-3B")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(16)), encoding="utf-8")
    (example,) = re.findall(r"^```\n(.*?)^```$", PAGE, re.M | re.S)
    plan, train = COMMANDS
    assert main(shlex.split(plan)[1:]) == 1  # it does not fit
    assert capsys.readouterr().out == example
    save_file({"nothing": torch.zeros(1)}, "SmolLM3-3B/model.safetensors")  # not loaded, but it must be there
    caplog.set_level("INFO", "preftune")
    assert main(shlex.split(train)[1:]) == 0
    assert any(record.getMessage().startswith("plan: 16 pairs in 6 steps") for record in caplog.records)
    assert not Path("runs").exists()


def test_the_devices_are_named():
    (row,) = re.findall(r"^\| `--device` \|(.*)$", PAGE, re.M)
    assert set(re.findall(r"`([\w-]+)`", row)) == set(_DEVICES) == {*CARDS, "cpu", "this"}


def test_the_table_is_the_result():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    lines = []
    for name, case in result["cases"].items():
        memory, seconds = case["memory_gb"], case["seconds"]
        lines.append(
            f"| {name} | {memory['forecast']:.2f} | {memory['measured']:.2f} | {case['memory_error']:+.0%} | "
            f"{seconds['forecast']:.0f} | {seconds['measured']:.0f} | {case['time_error']:+.0%} |"
        )
    assert len(lines) == 8
    assert "\n".join(lines) in PAGE
    assert result["reached"]


@pytest.mark.parametrize("name", ["memory", "time"])
def test_the_goals_are_met_in_every_case(name):
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    for case, found in result["cases"].items():
        assert abs(found[f"{name}_error"]) <= result["goal"][name], case
