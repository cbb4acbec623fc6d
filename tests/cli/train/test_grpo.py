"""`preftune grpo` and `preftune rloo` from the command line to the files, on a random model."""

from __future__ import annotations

import json

import pytest

from tests.cli.command import write_rows

FAST = [
    "--max_new_tokens", "6", "--per_device_train_batch_size", "4", "--num_generations", "2", "--max_steps", "2",
    "--learning_rate", "1e-2", "--report_to", "none", "--save_strategy", "no", "--logging_steps", "1",
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{word}?", "answer": "7"} for word in ("why", "how", "who", "what")]
    write_rows(tmp_path / "held_out.jsonl", [{"question": "when?", "answer": "7"}])
    return write_rows(tmp_path / "prompts.jsonl", rows)


@pytest.mark.parametrize("command", ["grpo", "rloo"])
def test_prompts_and_rules_in_a_policy_out(preftune, tiny_model, prompts, tmp_path, command) -> None:
    result = preftune(
        command, "--model", tiny_model, "--data", prompts, "--columns", "prompt=question", "--use_peft",
        "--reward_model", "exact", "length:2", "--reward_weights", "1", "0.5", "--eval_dataset_name", "held_out.jsonl",
        "--eval_strategy", "steps", "--eval_steps", "1", "--output_dir", tmp_path / "run", *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "Reward of answers to held-out prompts:" in result.out
    assert json.loads((tmp_path / "run/run.json").read_text())["method"] == command
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    names = ("rewards/exact/mean", "rewards/length:2/mean")
    parts = [[line[name] for name in names] for line in lines if names[0] in line]
    assert rewards == pytest.approx([right + 0.5 * brief for right, brief in parts])
    assert [line["step"] for line in lines if "eval_reward" in line] == [1, 2]  # the last is not measured twice


def test_without_held_out_prompts_the_flag_is_named(preftune, tiny_model, prompts, tmp_path) -> None:
    words = ["--columns", "prompt=question", "--reward_model", "length:2", "--output_dir", tmp_path / "run", *FAST]
    result = preftune("grpo", "--model", tiny_model, "--data", prompts, *words)
    assert result.code == 0, result.err
    assert "(--eval_dataset_name FILE gives one)" in result.out


def test_held_out_prompts_of_a_folder_with_splits_are_those_of_its_test_split(
    preftune, tiny_model, prompts, tmp_path, caplog
) -> None:
    caplog.set_level("DEBUG", logger="preftune")
    (tmp_path / "both").mkdir()
    for split, words in (("train", ("why", "how")), ("test", ("when", "where", "who"))):
        write_rows(tmp_path / f"both/{split}.jsonl", [{"question": f"{word}?", "answer": "7"} for word in words])
    result = preftune(
        "grpo", "--model", tiny_model, "--data", "both", "--columns", "prompt=question", "--use_peft",
        "--reward_model", "exact", "--eval_dataset_name", "both", "--eval_strategy", "steps", "--eval_steps", "2",
        "--output_dir", tmp_path / "run", *FAST,
    )  # fmt: skip
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (evaluated,) = [line for line in lines if "eval_reward" in line]
    assert evaluated["eval_samples_per_second"] * evaluated["eval_runtime"] == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No reward or judge is given"),
        (["--reward_model", "exact", "--eval_strategy", "steps"], "there is no eval_dataset"),
        (["--reward_model", "format:("], "not a regular expression"),
        (["--reward_model", "exact", "--num_generations", "3"], "is not a multiple of --num_generations 3"),
    ],
)
def test_what_is_missing_or_wrong_is_reported(preftune, tiny_model, prompts, words, message) -> None:
    result = preftune("grpo", "--model", tiny_model, "--data", prompts, "--columns", "prompt=question", *words)
    assert result.code == 2
    assert message in result.message
