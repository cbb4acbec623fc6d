"""The demo from end to end on a random model, and the dataset that it ships."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.demo.pairs import demo_rows, question, spread, training_pairs
from preftune.judges.text_matching import is_correct


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_whole_demo_on_a_random_model(preftune, tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "demo"
    result = preftune(
        "demo", "--model", tiny_model, "--output", out, "--max_pairs", 8, "--max_prompts", 6, "--batch_size", 4,
        "--max_new_tokens", 4,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "eval_strategy is 'no'" not in result.err, "the demo evaluates after training"
    assert max(map(len, result.out.splitlines())) <= 80 + len(str(out)) + len("Talk to both: preftune chat --model ")
    for word in (
        "Before and after",
        "contains the key fact",
        "tokens per answer",
        "after SFT",
        "win rate",
        "over SFT alone",
        "verdict",
        "held-out pairs",
        "Done in",
    ):
        assert word in result.out
    run = json.loads((out / "run.json").read_text())
    assert run["outcome"] == "finished"
    summary = json.loads((out / "eval" / "summary.json").read_text())
    assert {"win_rate", "ci_low", "ci_high", "n", "wins", "ties", "losses", "verdict"} <= set(summary)
    assert summary["n"] == 6
    assert summary["wins"] + summary["ties"] + summary["losses"] == 6
    assert summary["verdict_sentence"] in " ".join(result.out.split())
    answered = read_lines(out / "eval" / "generations.jsonl")
    assert len(answered) == 6
    of_sft, over_sft = (read_lines(out / folder / "generations.jsonl") for folder in ("sft/eval", "eval_over_sft"))
    assert [row["base"] for row in of_sft] == [row["base"] for row in answered]
    assert [row["base"] for row in over_sft] == [row["aligned"] for row in of_sft]
    assert [row["aligned"] for row in over_sft] == [row["aligned"] for row in answered]
    assert len(read_lines(out / "eval" / "verdicts.jsonl")) == 6
    assert any("eval_rewards/margins" in entry for entry in read_lines(out / "metrics.jsonl"))
    assert (out / "adapter_model.safetensors").is_file()
    assert (out / "sft" / "adapter_model.safetensors").is_file()
    assert "frozen copy" in json.dumps(run["reference"])  # of the model after SFT, not of the model as received
    assert (out / "audit.json").is_file()


def test_a_second_run_answers_anew(preftune, tiny_model, tmp_path) -> None:
    """Other weights, other answers: nothing of an earlier run in the same folder is shown as the new one's."""
    words = ["demo", "--model", tiny_model, "--output", tmp_path / "demo", "--max_pairs", 4, "--max_prompts", 3]
    words += ["--max_new_tokens", 3, "--learning_rate", "0.05", "--batch_size", 1]
    keys = []
    for seed in (0, 1):
        assert preftune(*words, "--seed", seed).code == 0
        keys.append([entry["key"] for entry in read_lines(tmp_path / "demo" / "eval" / "generations.jsonl")])
    assert keys[0] != keys[1]


def test_stopping_the_demo_says_how_to_go_on(preftune, tiny_model, tmp_path, monkeypatch) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preftune.demo.run.run_demo", stop)
    result = preftune("demo", "--model", tiny_model, "--output", tmp_path / "demo")
    assert result.code == 130
    assert "starts again" in result.message


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(width: int) -> None:
    from rich.console import Console

    from preftune.demo.run import DemoResult
    from preftune.demo.table import answers_table, results_table
    from preftune.evaluation.two_models.run import judge_rows
    from preftune.evaluation.two_models.summary import summarise
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.judges.rules import KeyFactJudge

    rows = demo_rows("test")[:5]
    answered = [
        AnsweredRow(row["id"], row["prompt"], row["rejected"], row["chosen"], 90, 12, False, True) for row in rows
    ]
    summary = summarise(answered, judge_rows(answered, rows, judge=KeyFactJudge()), rows, judge=KeyFactJudge())
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(answers_table(answered, {row["id"]: row["prompt"] for row in rows}))
    metrics = {"eval_rewards/margins": 1.0, "eval_rewards/accuracies": 0.9}
    console.print(results_table(DemoResult(summary, summary, summary, metrics, answered, {}, {})))
    console.file.close()
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "cut off at 90 tokens" in " ".join(text.replace("│", " ").split())


def test_dataset_needs_no_torch() -> None:
    code = "import sys\nfrom preftune.demo.pairs import demo_rows\ndemo_rows()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def answers() -> Iterator[tuple[dict, str]]:
    for row in demo_rows():
        yield row, row["chosen"]


def test_dataset_is_whole() -> None:
    rows, train, test = demo_rows(), demo_rows("train"), demo_rows("test")
    assert len(rows) >= 240
    assert len(train) + len(test) == len(rows)
    assert len({row["topic"] for row in rows}) >= 12
    assert len(test) >= 48
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["topic"] for row in test} == {row["topic"] for row in train}


def test_no_prompt_is_on_both_sides() -> None:
    prompts = [{" ".join(row["prompt"].lower().split()) for row in demo_rows(split)} for split in ("train", "test")]
    assert prompts[0].isdisjoint(prompts[1])
    assert len(prompts[0]) + len(prompts[1]) == len(demo_rows())


def test_chosen_answers_are_right_direct_and_short() -> None:
    for row, chosen in answers():
        assert is_correct(chosen, row), row["id"]
        assert len(chosen.split()) < len(row["rejected"].split()), row["id"]
        assert chosen != row["rejected"]


def test_rejected_answers_fail_in_several_ways() -> None:
    flaws = {row["flaw"] for row in demo_rows()}
    assert flaws == {"padded", "hedged", "off-topic", "wrong"}
    wrong = [row for row in demo_rows() if row["flaw"] in ("wrong", "off-topic")]
    assert not [row["id"] for row in wrong if is_correct(row["rejected"], row)]


def test_a_part_is_spread_over_the_topics() -> None:
    assert len({row["topic"] for row in spread(demo_rows("train"), 16)}) == 16
    assert [len(spread(range(7), count)) for count in (1, 5, 7, 9, None)] == [1, 5, 7, 7, 7]


def test_pairs_are_asked_as_a_chat() -> None:
    row = demo_rows("train")[0]
    (pair,) = training_pairs([row])
    assert pair["prompt"] == question(row) == [{"role": "user", "content": row["prompt"]}]
    assert pair["chosen"][0]["content"] == row["chosen"]
