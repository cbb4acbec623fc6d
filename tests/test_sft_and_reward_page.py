"""docs/sft-and-reward.md: its commands run one after the other, and its tables name what there is."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.data.formats.demonstrations import DEMONSTRATION_FORMATS
from preftune.training.trainers.reward import RewardTrainer
from tiny import chat_rows, save_tiny

PAGE = (Path(__file__).parent.parent / "docs" / "sft-and-reward.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (preftune .*)$", PAGE, re.M)
QUICK = {
    "sft": ["--max_steps", "2", "--no_report"],
    "dpo": ["--max_steps", "2", "--no_report", "--guard", "off"],
    "reward": ["--max_steps", "2", "--no_report"],
    "eval": ["--max_new_tokens", "4", "--limit", "2"],
}


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demonstrations = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(16)]
    for name, rows in (
        ("demonstrations", demonstrations),
        ("pairs", chat_rows(16)),
        ("other_pairs", chat_rows(40, start=100)),
        ("prompts", chat_rows(4, start=200)),
    ):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = save_tiny(tmp_path / "base")
    ran = []
    for line in COMMANDS:
        words = shlex.split(line.replace("BASE", base).replace("A,B,C", "runs/reward,runs/reward-merged"))[1:]
        if words[0] == "ppo":  # its own tests run it; here its flags are read
            from preftune.cli.train import ppo

            assert all(word in ppo.METHOD.help_text() for word in words if word.startswith("--"))
            continue
        ran.append(words[0])
        assert main([*words, *QUICK.get(words[0], [])]) == 0, (line, capsys.readouterr().err)
    assert ran == ["sft", "dpo", "reward", "merge", "eval", "eval", "eval"]
    assert Path("runs/reward-merged/preftune_reward.json").is_file()
    said = capsys.readouterr().out
    assert "Judge with it:   preftune eval --judge reward:runs/reward-merged" in said
    assert "The judge is a reward model trained on" in said


def test_the_tables_name_what_there_is():
    assert set(re.findall(r"^\| `([a-z][a-z-]*)` \|", PAGE, re.M)) - {"loss", "accuracy", "margin"} == set(
        DEMONSTRATION_FORMATS
    )
    for column in RewardTrainer.columns:
        assert f"`{column}`" in PAGE, column


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./-]+)\)", PAGE))
def test_its_links_lead_somewhere(link):
    assert (Path(__file__).parent.parent / "docs" / link).is_file()
