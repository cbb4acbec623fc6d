"""`preftune eval`: its exit code, the verdict that a suite changes, and reward models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preftune.storage.jsonl import read_lines
from tests.cli.commands.test_eval import duel, other_model, questions, read, server
from tests.judges.test_reward_model import saved
from tiny import save_tiny

__all__ = ["other_model", "questions", "server"]


def test_the_exit_code_says_what_the_verdict_says(preftune, server, questions, tmp_path: Path) -> None:
    failed = preftune(*duel(server, questions, tmp_path / "out", "--fail-under", "better"))
    assert failed.code == 1
    assert "exit code 1, because the verdict is 'shorter, not better'" in failed.err
    assert "With 6 prompts a true win rate of 55% is shown in 3% of evaluations; take" in failed.err
    assert "rule equal length: fails." in failed.out
    assert failed.out.startswith("verdict: shorter, not better\nThe aligned model wins 100.0%")
    server.answer = lambda body: "tie" if body["model"] == "judge" else f"{body['model'][0]} has two words"
    tied = duel(server, questions, tmp_path / "tied", "--fail_under")
    assert preftune(*tied, "undecided").code == 0
    assert preftune(*tied, "below-bar").code == 1


def test_a_forgetting_budget_without_measured_abilities(preftune, server, questions, tmp_path: Path) -> None:
    words = duel(server, questions, tmp_path / "out", "--forgetting_budget")
    assert "give points between 0 and 100" in preftune(*words, "-1").message
    assert "the forgetting budget of 1.5 points cannot be confirmed" in preftune(*words, "1.5").out
    alone = preftune("eval", "--model", server.spec("brief"), "--suite", "xstest", "--fail_under", "better", "-o", "x")
    assert (alone.code, "--fail_under" in alone.message) == (2, True)


@pytest.mark.sample(0)
def test_a_suite_without_a_comparison_decides_nothing(
    preftune, tiny_model, other_model, questions, tmp_path: Path
) -> None:
    """A verdict that cannot come is refused before the suite runs; a budget is kept by the next comparison."""
    (tmp_path / "text.txt").write_text("Plain words. " * 40, encoding="utf-8")
    models = ["--model", other_model, "--baseline", tiny_model, "-o", tmp_path / "out"]
    suite = ["eval", *models, "--suite", "general", "--suite_data", tmp_path / "text.txt"]
    for flag, value in (("--fail_under", "better"), ("--forgetting_budget", "1")):
        refused = preftune(*suite, flag, value)
        assert (refused.code, f"{flag} applies to a verdict" in refused.message) == (2, True)
        assert not (tmp_path / "out" / "general").exists()
    compared = ["eval", *models, "--judge", "longer", "--prompts", questions, "--max_new_tokens", 4]
    assert preftune(*compared, "--forgetting_budget", "1.5").code == 0
    again = preftune(*compared)
    assert "the forgetting budget is 1.5 points, as in the earlier evaluation" in again.err
    assert read(tmp_path / "out")["abilities"] == {"budget": 1.5}
    measured = preftune(*suite, "--fail_under", "better")
    assert "The verdict with these abilities: " in measured.out
    assert measured.code == 1


def test_reward_models_and_their_suite(preftune, tiny_model, tmp_path: Path) -> None:
    rows = [{"id": n, "subset": "Math", "prompt": f"{n}?", "chosen": ["a b"], "rejected": ["c", "d"]} for n in range(3)]
    data, rater = tmp_path / "rows.jsonl", saved(tmp_path / "rater")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "--model", rater, "--suite", "reward-bench", "--suite_data", data]
    result = preftune(*words)
    assert result.code == 0, result.err
    summary = json.loads((Path(rater) / "eval" / "reward-bench" / "summary.json").read_text())
    assert (summary["headline"]["name"], summary["headline"]["base"]) == ("score by reward", pytest.approx(1 / 3))
    assert "Score by reward" in result.out
    refused = preftune(*words, "--baseline", tiny_model)
    assert (refused.code, "is a reward model and" in refused.err) == (2, True)
    others = preftune(*words[:5], "--suite", "xstest", "-o", tmp_path / "others")
    assert (others.code, "is a reward model, which writes no answers" in others.err) == (2, True)
    assert not (tmp_path / "others" / "reward-bench").exists(), "no suite ran"
    compared = preftune("eval", "--model", rater, "--judge", "shorter")
    assert (compared.code, "is a reward model, which writes no answers" in compared.err) == (2, True)
    judged = preftune(*words, "--judge", f"reward:{tmp_path / 'missing'}")
    assert (judged.code, "--judge has no effect unless models write answers" in judged.err) == (2, True)


def test_a_judge_or_models_that_a_later_suite_needs_are_missed_before_the_first(
    preftune, server, tmp_path: Path
) -> None:
    models = ["--model", server.spec("brief"), "--baseline", server.spec("wordy"), "-o", tmp_path / "out"]
    for suite, words in (("hhh", "reads log-probabilities"), ("mt-bench", "asks a chat model with its own prompts")):
        refused = preftune("eval", *models, "--suite", "xstest", "--suite", suite)
        assert (refused.code, words in refused.message) == (2, True)
    assert server.asked == []


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A folder of two seeds."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "seeds.json").write_text('{"seeds": [1, 2]}')
    for seed in (1, 2):
        save_tiny(tmp_path / "runs" / f"seed-{seed}", seed=seed)
    return tmp_path / "runs"


def test_the_baseline_of_several_seeds_answers_once(preftune, server, questions, seeds: Path) -> None:
    words = ["eval", "--model", seeds, "--baseline", server.spec("wordy"), "--judge", "longer"]
    words += ["--prompts", questions, "--max_new_tokens", 8]
    result = preftune(*words, "--max_calls", 6)
    assert result.code == 0, result.err
    assert len(server.asked) == 6
    first, second = (read_lines(seeds / f"seed-{seed}" / "eval" / "generations.jsonl") for seed in (1, 2))
    assert [line["base"] for line in first] == [line["base"] for line in second]
    assert first[0]["base"].startswith("well, What is 0?")
    assert [line["aligned"] for line in first] != [line["aligned"] for line in second]
    assert preftune(*words, "--temperature", "0.5").code == 0
    assert len(server.asked) == 12, "other sampling, other answers"


def test_caps_and_costs_of_several_seeds(preftune, server, tiny_model, questions, seeds: Path) -> None:
    """A cap is one of all seeds together; each summary has its own calls."""
    words = ["eval", "--model", seeds, "--baseline", tiny_model, "--judge", server.spec("judge")]
    words += ["--prompts", questions, "--max_new_tokens", 8]
    capped = preftune(*words, "--max_calls", 20)
    assert (capped.code, "12 calls were already made" in capped.message) == (2, True)
    assert len(server.asked) == 12
    rest = preftune(*words, "--max_calls", 12)
    assert rest.code == 0, rest.err
    costs = [read(seeds / f"seed-{seed}" / "eval")["cost"]["calls"] for seed in (1, 2)]
    assert costs == [0, 12]
