"""An adapter whose base has moved: the message names both, and one flag gives the new place, in every command."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from preftune.errors import ModelError
from preftune.generation.lazy_model import ModelSource, contents
from preftune.models import load_model, load_tokenizer, merge
from preftune.models.classifier import load_classifier
from preftune.models.locate import Location
from saved_reward import save_reward
from tests.cli.command import pairs_file, preftune
from tiny import save_tiny, tiny_tokenizer

__all__ = ["pairs_file", "preftune"]


@pytest.fixture
def moved(tmp_path: Path) -> tuple[str, str, str]:
    """An adapter, where its base was, and where it is."""
    old, new, adapter = tmp_path / "old-base", tmp_path / "new-base", tmp_path / "adapter"
    model = load_model(save_tiny(old))
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(old)
    shutil.move(old, new)
    return str(adapter), str(old), str(new)


def check(message: str, adapter: str, old: str) -> None:
    assert f"The adapter {adapter} needs the base model {old}, which was not found" in message
    assert "--base MODEL (base_model=...)" in message
    assert f"{adapter}/adapter_config.json as base_model_name_or_path" in message


def test_python_names_the_adapter_and_its_base_and_takes_another_place(moved, tmp_path):
    adapter, old, new = moved
    for wrong in (
        lambda: load_model(adapter),
        lambda: load_tokenizer(adapter),
        lambda: merge(adapter, tmp_path / "merged"),
        lambda: ModelSource(adapter).identity,
        lambda: ModelSource(adapter).base_name,
    ):
        with pytest.raises(ModelError) as caught:
            wrong()
        check(str(caught.value), adapter, old)
    assert load_model(adapter, base_model=new) is not None
    assert load_tokenizer(adapter, base_model=new).get_vocab() == tiny_tokenizer().get_vocab()
    assert ModelSource(adapter, base_model=new).base_name == new
    assert merge(adapter, tmp_path / "merged", base_model=new) is not None


def test_a_reward_models_adapter_too(tmp_path):
    base = save_tiny(tmp_path / "old")
    adapter = save_reward(tmp_path / "reward", base=base)
    shutil.move(base, tmp_path / "new")
    with pytest.raises(ModelError, match="needs the base model"):
        load_classifier(adapter)
    assert load_classifier(adapter, base_model=str(tmp_path / "new")) is not None


@pytest.mark.parametrize("command", ["chat", "eval", "dpo", "sft", "sample", "merge"])
def test_every_command_says_the_same_and_takes_the_flag(command, moved, preftune, pairs_file, tmp_path, monkeypatch):
    adapter, old, new = moved
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    demonstrations = tmp_path / "d.jsonl"
    demonstrations.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    model, run, short = (
        ["--model", adapter],
        ["--max_steps", 1, "--output_dir", tmp_path / "run"],
        ["--max_new_tokens", 2],
    )
    words = {
        "chat": [*model, *short],
        "eval": [*model, "--judge", "shorter", "--prompts", pairs_file, *short],
        "dpo": [*model, "--data", pairs_file, *run],
        "sft": [*model, "--data", demonstrations, *run],
        "sample": [*model, "--data", pairs_file, "-o", tmp_path / "s.jsonl", *short],
        "merge": [adapter, "-o", tmp_path / "merged"],
    }[command]
    refused = preftune(command, *words)
    assert refused.code == 2
    check(refused.message, adapter, old)
    if command == "eval":
        words += ["--output", tmp_path / "eval"]
    accepted = preftune(command, *words, "--base", new)
    assert accepted.code == 0, accepted.err
    if command in ("dpo", "sft"):
        saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == new, "the next command finds it"


def test_another_template_of_the_tokenizer_is_another_model(tmp_path) -> None:
    """Rows with tools are rendered with `additional_chat_templates/tool_use.jinja`."""
    folder = Path(save_tiny(tmp_path / "model"))
    before = contents(Location("folder", str(folder)))
    file = folder / "additional_chat_templates" / "tool_use.jinja"
    file.parent.mkdir()
    file.write_text("{{ messages }}", encoding="utf-8")
    added = contents(Location("folder", str(folder)))
    file.write_text("{{ messages }}!", encoding="utf-8")
    assert len({before, added, contents(Location("folder", str(folder)))}) == 3
