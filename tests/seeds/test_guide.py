"""docs/from-the-tutorial.md: its three programs and its commands are run, with a tiny model and tiny data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.main import main
from tests.seeds.test_programs import mixed, transcripts
from tiny import chat_rows, save_tiny

PAGE = (Path(__file__).parents[2] / "docs" / "from-the-tutorial.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = re.findall(r"^    (preftune .*)$", PAGE, re.M)
MODEL = "HuggingFaceTB/SmolLM3-3B"
STEPS = {"sft": 2, "reward": 2, "ppo": 1}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, str]:
    """What stands in the guide, and what stands for it here."""
    monkeypatch.chdir(tmp_path)
    for name, make in (("ultrafeedback", mixed), ("hh", transcripts)):
        write(tmp_path / name / "train.jsonl", make(16))
        write(tmp_path / name / "test.jsonl", make(4))
    return {
        MODEL: save_tiny(tmp_path / "model", hidden_size=64),
        "trl-lib/ultrafeedback_binarized": "ultrafeedback",
        "Anthropic/hh-rlhf": "hh",
    }


def replaced(text: str, names: dict[str, str]) -> str:
    for shown, real in names.items():
        text = text.replace(shown, real)
    return text


@pytest.mark.parametrize("number", range(3), ids=["beyond-sft", "course", "dpo-vs-rlhf"])
def test_a_program_trains_and_saves(number, names):
    assert len(PROGRAMS) == 3
    namespace: dict[str, Any] = {}
    exec(compile(replaced(PROGRAMS[number], names), "guide", "exec"), namespace)
    trainer = namespace["trainer"]
    assert trainer.state.global_step == {0: 8, 1: 1, 2: 1}[number]
    assert trainer.full == (number == 1)
    assert trainer.ref_model is None
    weights = "model.safetensors" if trainer.full else "adapter_model.safetensors"
    assert Path(trainer.args.output_dir, weights).exists()
    measured = any("eval_rewards/margins" in entry for entry in trainer.state.log_history)
    assert measured == (number != 1)


def test_the_commands_run_one_after_the_other(names, capsys):
    demonstrations = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(16)]
    write(Path("demonstrations.jsonl"), demonstrations)
    write(Path("pairs.jsonl"), chat_rows(16))
    for line in COMMANDS:
        words = shlex.split(replaced(line, names))[1:]
        more = ["--no_report", "--max_steps", str(STEPS[words[0]])]
        if words[0] == "ppo":
            more += ["--max_new_tokens", "4", "--per_device_train_batch_size", "2"]
        assert main([*words, *more]) == 0, (line, capsys.readouterr().err)
    assert Path("runs/ppo/adapter_model.safetensors").exists()
