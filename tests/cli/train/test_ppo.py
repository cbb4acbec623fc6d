"""`preftune ppo` and `preftune online` from the command line to the files, on a random model."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from preftune.cli.train import nash_md, online, ppo, xpo
from tests.cli.command import write_rows

RULES = """
def vowels(prompt, answer, row):
    return sum(letter in "aeiou" for letter in answer)

def by_length(prompt, answer_a, answer_b, row):
    return "tie" if len(answer_a) == len(answer_b) else "a" if len(answer_a) > len(answer_b) else "b"
"""

FAST = [
    "--max_new_tokens", "6", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--report_to", "none",
    "--save_strategy", "no",
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_rules.py").write_text(RULES)
    return write_rows(tmp_path / "prompts.jsonl", [{"question": f"{word}?"} for word in ("why", "how", "who", "what")])


def test_ppo_with_an_adapter(preftune, tiny_model, prompts, tmp_path) -> None:
    result = preftune(
        "ppo", "--model", tiny_model, "--data", prompts, "--columns", "prompt=question", "--as_chat", "--use_peft",
        "--reward_model", "rule:cli_rules:vowels", "--num_mini_batches", "2", "--num_ppo_epochs", "1",
        "--output_dir", tmp_path / "run", *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / "run/adapter_model.safetensors").is_file()
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert (facts["method"], facts["outcome"]) == ("ppo", "finished")
    assert facts["guard"]["mode"] == "warn"
    assert "Done after 2 steps" in result.out
    assert "Score of the model's answers" in result.out
    assert "preftune eval" in result.out
    again = preftune("chat", "--help")
    assert again.code == 0


def test_ppo_of_all_weights_from_pairs(preftune, tiny_model, pairs_file, tmp_path, prompts, caplog) -> None:
    result = preftune(
        "ppo", "--model", tiny_model, "--data", pairs_file, "--reward_model", "rule:cli_rules:vowels",
        "--max_steps", "2", "--num_mini_batches", "1", "--num_ppo_epochs", "1", "--no_report",
        "--output_dir", tmp_path / "run", *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tmp_path / "run/model.safetensors").is_file()
    assert "frozen copy" in caplog.text
    assert f"--baseline {tiny_model}" in result.out


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("command", "method", "options"),
    [
        ("online", "online-dpo", ["--num_generations", "4"]),
        ("xpo", "xpo", ["--alpha", "0.01", "0.001"]),
        ("nash-md", "nash-md", ["--mixture_coef", "0.25"]),
    ],
)
def test_a_judge_compares_fresh_answers(preftune, tiny_model, prompts, tmp_path, command, method, options) -> None:
    result = preftune(
        command, "--model", tiny_model, "--data", prompts, "--columns", "prompt=question", "--use_peft",
        "--judge", "rule:cli_rules:by_length", "--max_steps", "2", "--output_dir", tmp_path / "run", *options, *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert (facts["method"], facts["outcome"]) == (method, "finished")
    assert (tmp_path / "run/README.md").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--data", "x.jsonl"], "There is no model to align"),
        (["ppo", "--model", "x"], "There are no prompts to train on"),
        (["ppo", "--model", "x", "--data", "x.jsonl"], "No reward or judge is given; name the reward"),
        (["online", "--model", "x", "--data", "x.jsonl"], "name the judge that compares the answers with --judge"),
        (
            ["nash-md", "--model", "x", "--data", "y", "--judge", "longer", "--mixture_coef", "2"],
            "--mixture_coef [2.0] must be",
        ),
        (["ppo", "--model", "x", "--data", "y", "--reward_model", "r", "--kl_ceof", "1"], "Did you mean --kl_coef?"),
        (
            ["ppo", "--model", "x", "--data", "y", "--reward_model", "r", "--lam", "2"],
            "--lam 2.0 must be between 0 and 1",
        ),
        (["ppo", "--model", "x", "--data", "y", "--reward_model", "r", "--eval_strategy", "steps"], "preftune eval"),
    ],
)
def test_what_is_missing_or_wrong_is_reported(preftune, words, message) -> None:
    result = preftune(*words)
    assert result.code == 2
    assert message in result.message


def test_a_reward_model_that_is_not_there(preftune, tiny_model, prompts) -> None:
    result = preftune("ppo", "--model", tiny_model, "--data", prompts, "--reward_model", "./no-such-model")
    assert result.code != 0
    assert "no-such-model" in result.message


@pytest.mark.parametrize("command", [ppo, online, xpo, nash_md])
def test_the_help_page_names_flags_that_exist_with_their_defaults(command) -> None:
    import importlib

    from preftune.cli.flags.arguments import ModelArguments
    from preftune.cli.train.fresh_answers import PromptArguments
    from preftune.cli.train.train_command import parser_of

    known = parser_of(command.METHOD).names()
    named = {name.replace("-", "_") for name in re.findall(r"--([\w-]+)", command.METHOD.help_text())}
    assert named - set(known) == {"help_all", "traceback"}
    module, _, name = command.METHOD.config.partition(":")
    config = getattr(importlib.import_module(module), name)
    fields = {
        entry.name: entry for kind in (config, ModelArguments, PromptArguments) for entry in dataclasses.fields(kind)
    }
    for flag, said in re.findall(r"^  --(\w+) +.*?\((\d[\d.]*)\)$", command.METHOD.help_text(), flags=re.MULTILINE):
        assert float(said) == float(fields[flag].default), flag
    assert all(len(line) <= 80 for line in command.METHOD.help_text().splitlines())


@pytest.mark.parametrize("command", ["ppo", "online", "xpo", "nash-md"])
def test_help_comes_without_torch(preftune, command) -> None:
    result = preftune(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: preftune {command}")
