"""What the README shows is run: its program, its commands, its links, and its promise about imports."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import preftune
from preftune.cli.main import COMMANDS, main
from tiny import chat_rows, save_tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
RULE = """
def prefer_polite(prompt, answer_a, answer_b, row):
    return "a" if answer_a < answer_b else "b"
"""


def program() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    return block


def commands() -> list[str]:
    lines = re.findall(r"^    (preftune .*)$", README, re.M)
    return [re.sub(r"\s{2,}.*", "", line) for line in lines]


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, str]:
    """What stands in the README, and what stands for it here."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(8)), encoding="utf-8")
    model = save_tiny(tmp_path / "model", hidden_size=64)
    return {MODEL: model, "trl-lib/ultrafeedback_binarized": "pairs.jsonl"}


def replaced(text: str, names: dict[str, str]) -> str:
    for shown, real in names.items():
        text = text.replace(shown, real)
    return text


def test_the_program_trains_and_saves(names):
    exec(compile(replaced(program(), names), "README", "exec"), {})
    assert Path("runs/dpo/adapter_model.safetensors").exists()
    assert json.loads(Path("runs/dpo/run.json").read_text())["outcome"] == "finished"


def test_the_commands_run_one_after_the_other(names, monkeypatch, capsys):
    Path("my_rules.py").write_text(RULE, encoding="utf-8")
    assert [
        shlex.split(line)[1] for line in commands()
    ] == "dpo chat merge audit convert sample label eval report".split()
    for line in commands():
        words = shlex.split(replaced(line, names))[1:]
        if words[0] == "chat":
            monkeypatch.setattr("sys.stdin", _lines("apple 0?\n"))
        if words[0] in ("chat", "sample", "eval"):
            words += ["--max_new_tokens", "4"]
        assert main(words) == 0, (line, capsys.readouterr().err)
    assert Path("runs/merged/model.safetensors").exists()
    assert Path("mine.jsonl").read_text(encoding="utf-8").count("\n") >= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(command, capsys):
    assert main([command, "--help"]) == 0
    assert "usage: preftune" in capsys.readouterr().out


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_importing_preftune_and_its_help_bring_no_torch():
    code = "import sys, preftune, preftune.cli.main as m; m.main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_public_names_are_the_documented_ones():
    assert sorted(preftune.__all__) == dir(preftune)
    for name in preftune.__all__:
        assert getattr(preftune, name) is not None


def _lines(text: str):
    import io

    return io.StringIO(text)
