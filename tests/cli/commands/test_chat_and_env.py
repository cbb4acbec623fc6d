"""Talking through a pipe, both voices, and the environment report."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from preftune.cli.commands.chat import _answer_columns, _answer_stacked
from preftune.cli.commands.chat_session import GrowingText, labels, load_speakers
from preftune.errors import RequestError
from tests.generation.chat_server import serving


@pytest.fixture
def adapter(preftune, tiny_model, pairs_file, tmp_path) -> Path:
    """An adapter that changes what the tiny model says."""
    run = tmp_path / "aligned"
    words = ["--max_steps", 8, "--use_peft", "--learning_rate", "0.1", "--output_dir", run]
    assert preftune("dpo", "--model", tiny_model, "--data", pairs_file, *words).code == 0
    return run


@pytest.fixture
def say(preftune, monkeypatch):
    def call(text: str, *words: object):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return preftune("chat", *words, "--max_new_tokens", 6)

    return call


def test_pipe_gives_one_line_per_message(say, tiny_model) -> None:
    result = say("what is paris ?\n\nis it good ?\n", "--model", tiny_model)
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 2


def test_where_the_locale_knows_ascii_only_utf_8_is_read_and_what_is_no_text_is_no_error(
    preftune, monkeypatch, tiny_model
) -> None:
    typed = io.TextIOWrapper(io.BytesIO("höre ?\n".encode() + b"\xff ?\n"), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", typed)
    result = preftune("chat", "--model", tiny_model, "--max_new_tokens", 3)
    assert result.code == 0, result.err
    assert typed.encoding == "utf-8"
    assert len(result.out.splitlines()) == 2


def test_exit_and_reset(say, tiny_model) -> None:
    result = say("what is paris ?\n/reset\nwhat is paris ?\n/exit\nwhat is paris ?\n", "--model", tiny_model)
    first, second = result.out.splitlines()
    assert first == second


def test_the_conversation_is_remembered(tiny_model) -> None:
    (speaker,) = load_speakers(tiny_model, None, system="good")
    settings = {"show": lambda text: None, "max_new_tokens": 4, "temperature": 0.0, "seed": 0}
    answer = speaker.answer("what is paris ?", **settings)
    assert [m["role"] for m in speaker.messages] == ["system", "user", "assistant"]
    assert speaker.messages[-1]["content"] == answer
    speaker.reset()
    assert [m["role"] for m in speaker.messages] == ["system"]


def test_a_thought_is_not_remembered_though_its_marks_are_special_tokens(tiny_model, monkeypatch) -> None:
    (speaker,) = load_speakers(tiny_model, None, system=None)
    speaker.tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    said = speaker.tokenizer("[THINK] is it good ? [/THINK] paris", add_special_tokens=False)["input_ids"]

    def generate(*, input_ids, streamer, **_):
        for ids in (input_ids, torch.tensor(said)):
            streamer.put(ids)
        streamer.end()

    monkeypatch.setattr(speaker.model, "generate", generate)
    shown = speaker.answer("what is paris ?", show=lambda text: None, max_new_tokens=4, temperature=0.0, seed=0)
    assert "good" in shown
    assert speaker.messages[-1]["content"].split() == ["paris"]


def test_adapter_speaks_beside_its_base_from_one_model(say, adapter, tiny_model) -> None:
    alone = say("what is the capital of france one ?\n", "--model", tiny_model).out.strip()
    result = say("what is the capital of france one ?\n", "--model", adapter)
    assert result.code == 0, result.err
    base, aligned = result.out.splitlines()
    assert base == f"tiny-llama: {alone}"
    assert aligned.startswith("aligned: ")
    assert aligned.removeprefix("aligned: ") != alone
    speakers = load_speakers(str(adapter), tiny_model, system=None)
    assert speakers[0].model is speakers[1].model


def test_a_separate_baseline_is_loaded_beside(adapter, tiny_model, tmp_path) -> None:
    from preftune.models import merge

    merge(str(adapter), tmp_path / "merged")
    speakers = load_speakers(str(tmp_path / "merged"), tiny_model, system=None)
    assert [s.name for s in speakers] == ["tiny-llama", "merged"]
    assert speakers[0].model is not speakers[1].model
    with pytest.raises(RequestError, match="both"):
        load_speakers(tiny_model, tiny_model, system=None)


def test_models_of_one_name_are_shown_by_their_whole_names(say, tiny_model, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda body: "first") as one, serving(lambda body: "second") as two:
        result = say("what ?\n", "--model", two.spec(), "--baseline", one.spec())
        same = say("what ?\n", "--model", one.spec(), "--baseline", one.spec())
    assert result.out.splitlines() == [f"{one.spec()}: first", f"{two.spec()}: second"]
    assert same.code == 2
    assert "--model and --baseline are both openai:" in same.message
    assert labels("a/aligned", "b/aligned") == ["a/aligned", "b/aligned"]


def test_chatting_leaves_the_adapter_frozen_or_not_as_it_was(adapter) -> None:
    base, _ = load_speakers(str(adapter), None, system=None)
    before = {name: p.requires_grad for name, p in base.model.named_parameters()}
    base.answer("what ?", show=lambda text: None, max_new_tokens=2, temperature=0.0, seed=0)
    assert {name: p.requires_grad for name, p in base.model.named_parameters()} == before


@pytest.mark.parametrize("wide", [True, False])
def test_answers_on_a_terminal(adapter, capsys, monkeypatch, wide: bool) -> None:
    monkeypatch.setenv("COLUMNS", "120" if wide else "60")
    speakers = load_speakers(str(adapter), None, system=None)
    show = _answer_columns if wide else _answer_stacked
    capsys.readouterr()
    show(speakers, "what is paris ?", {"max_new_tokens": 4, "temperature": 0.0, "seed": 0})
    out = capsys.readouterr().out
    assert "tiny-llama" in out
    assert "aligned" in out


def test_temperature_draws_by_seed(tiny_model) -> None:
    (speaker,) = load_speakers(tiny_model, None, system=None)
    answers = []
    for seed in (1, 1, 2, 3, 4):
        speaker.reset()
        answers.append(speaker.answer("what ?", show=lambda text: None, max_new_tokens=8, temperature=1.0, seed=seed))
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_half_characters_are_never_shown() -> None:
    class Bytes:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    shown: list[str] = []
    streamer = GrowingText(Bytes(), shown.append)
    streamer.put(torch.tensor([[1, 2]]))  # the prompt
    for byte in "aé".encode():
        streamer.put(torch.tensor([byte]))
    streamer.end()
    assert shown == ["a", "aé"]
    assert streamer.text == "aé"


def test_env(preftune) -> None:
    result = preftune("env")
    assert result.code == 0
    for word in ("torch", "transformers", "cores", "policy for bfloat16", "free", "GB"):
        assert word in result.out


def test_env_as_json(preftune, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_bytes(bytes(1000))
    facts = json.loads(preftune("env", "--json").out)
    assert facts["versions"]["preftune"]
    assert facts["disk"]["preftune cache used_bytes"] == 1000
    assert facts["hardware"]["memory_bytes"] > 1e8
