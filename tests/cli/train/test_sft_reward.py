"""`preftune sft` and `preftune reward` from the command line, and what comes after them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from preftune.cli.train import reward, sft
from tests.cli.command import write_rows
from tiny import chat_rows

QUICK = ("--max_steps", 2, "--per_device_train_batch_size", 4, "--no_report", "--report_to", "none")


@pytest.fixture
def demonstrations(tmp_path: Path) -> str:
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(16)]
    return write_rows(tmp_path / "demonstrations.jsonl", rows)


def run_facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return facts


@pytest.mark.parametrize("adapter", [False, True])
def test_sft_then_dpo(preftune, tiny_model, demonstrations, pairs_file, tmp_path, adapter) -> None:
    peft = ["--use_peft", "--lora_r", 4] if adapter else []
    first = preftune(
        "sft", "--model", tiny_model, "--data", demonstrations, "--output_dir", tmp_path / "sft", *peft, *QUICK,
        "--eval_fraction", 0.2, "--learning_rate", 0.01,
    )  # fmt: skip
    assert first.code == 0, first.err
    kind = "adapter" if adapter else "model"
    assert f"The {kind} is in {tmp_path / 'sft'}" in first.out
    assert "Held out: loss" in first.out
    assert "preftune dpo --model" in first.out
    second = preftune(
        "dpo", "--model", tmp_path / "sft", "--data", pairs_file, "--output_dir", tmp_path / "dpo", *QUICK,
        "--guard", "off",
    )  # fmt: skip
    assert second.code == 0, second.err
    facts = run_facts(tmp_path / "dpo")
    assert facts["outcome"] == "finished"
    assert facts["model"]["full_fine_tuning"] is not adapter
    expected = "a frozen copy of the trainable weights" if adapter else "a pass over all rows before the first step"
    assert expected in facts["reference"]["source"]
    assert facts["self_check"]["reference_distance"] == 0.0


def test_sft_merged_then_dpo(preftune, tiny_model, demonstrations, pairs_file, tmp_path) -> None:
    words = ["--use_peft", "--lora_r", 4, "--output_dir", tmp_path / "sft", *QUICK]
    assert preftune("sft", "--model", tiny_model, "--data", demonstrations, *words).code == 0
    assert preftune("merge", tmp_path / "sft", "-o", tmp_path / "merged").code == 0
    done = preftune(
        "dpo", "--model", tmp_path / "merged", "--data", pairs_file, "--output_dir", tmp_path / "dpo", *QUICK,
        "--use_peft", "--guard", "off",
    )  # fmt: skip
    assert done.code == 0, done.err


def test_reward(preftune, tiny_model, pairs_file, tmp_path) -> None:
    done = preftune(
        "reward", "--model", tiny_model, "--data", pairs_file, "--output_dir", tmp_path / "reward", *QUICK,
        "--eval_fraction", 0.25, "--use_peft", "--lora_task_type", "SEQ_CLS", "--center_rewards_coefficient", 0.01,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Held out: accuracy" in done.out
    assert "Calibration error" in done.out
    facts = run_facts(tmp_path / "reward")
    assert (facts["method"], facts["outcome"]) == ("reward", "finished")
    assert facts["calibration"]["bins"]
    assert "On held-out pairs" in (tmp_path / "reward" / "README.md").read_text()


def test_a_run_is_resumed(preftune, tiny_model, demonstrations, tmp_path) -> None:
    words = ["sft", "--model", tiny_model, "--data", demonstrations, "--output_dir", tmp_path / "sft", *QUICK]
    assert preftune(*words, "--save_strategy", "steps", "--save_steps", 1).code == 0
    again = preftune(*words, "--resume", tmp_path / "sft" / "checkpoint-1")
    assert again.code == 0, again.err
    assert run_facts(tmp_path / "sft")["resumed_from_step"] == 1


def test_several_datasets_are_mixed(preftune, tiny_model, demonstrations, pairs_file, tmp_path, caplog) -> None:
    words = ["--data", f"{demonstrations}:0.5", f"{pairs_file}:0.5", "--output_dir", tmp_path / "sft", *QUICK]
    done = preftune("sft", "--model", tiny_model, *words)
    assert done.code == 0, done.err
    assert run_facts(tmp_path / "sft")["data"]["train"]["groups"] == 16
    assert any("holds preferences: their chosen side is imitated" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft", "--model", "M"], "There are no demonstrations to train on. Name them with --data"),
        (["sft", "--data", "D"], "There is no model to train. Name it with --model"),
        (["sft", "--model", "M", "--data", "D", "--packing"], "rows are always packed"),
        (["sft", "--model", "M", "--data", "D", "--betta", "1"], "There is no flag --betta"),
        (["reward", "--model", "M", "--data", "D", "--assistant_only_loss", "true"], "There is no flag"),
        (["reward", "--model", "M"], "There are no preference pairs to train on"),
    ],
)
def test_wrong_requests(preftune, words, said) -> None:
    done = preftune(*words)
    assert done.code == 2
    assert said in done.message


def test_a_missing_file_and_an_unknown_shape_are_reported_before_a_model_is_loaded(
    preftune, tiny_model, tmp_path
) -> None:
    words = ["--model", tiny_model, "--output_dir", tmp_path / "x"]
    assert "does not exist" in preftune("sft", *words, "--data", tmp_path / "gone.jsonl").message
    odd = write_rows(tmp_path / "odd.jsonl", [{"foo": "bar"}])
    assert "holds no demonstrations that preftune knows" in preftune("sft", *words, "--data", odd).message
    pairs = write_rows(tmp_path / "pairs.jsonl", chat_rows(4))
    margins = preftune("sft", *words, "--data", pairs, "--margin_from_scores", 1.0)
    assert "--margin_from_scores applies to pairs" in margins.message


@pytest.mark.parametrize("command", [sft, reward])
def test_every_flag_on_the_help_page_is_there(command) -> None:
    from preftune.cli.train.train_command import parser_of

    known = set(parser_of(command.METHOD).names())
    shown = set(re.findall(r"--([\w-]+)", command.METHOD.help_text()))
    elsewhere = {"help-all", "traceback", "judge"}
    assert shown - elsewhere <= known
    assert all(len(line) <= 80 for line in command.METHOD.help_text().splitlines())
