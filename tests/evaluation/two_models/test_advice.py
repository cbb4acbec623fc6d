"""Advice after an evaluation, in agreement with the tutorials, and with beta the right way round."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from preftune.evaluation.two_models.advice import next_steps
from preftune.statistics.intervals import WinRate, verdict
from preftune.statistics.length_control import length_controlled


def result(rate: float, low: float, high: float, *, prompts: int = 100, ties: int = 0) -> WinRate:
    return WinRate(rate, low, high, prompts, 0, ties, 0, prompts, 0.5)


BETTER = result(0.65, 0.56, 0.73)
SMALL = result(0.53, 0.51, 0.55)
WORSE = result(0.40, 0.32, 0.48)
UNDECIDED = result(0.60, 0.45, 0.73)
ALL = (BETTER, SMALL, WORSE, UNDECIDED)


def text(*arguments, **options) -> str:
    return " ".join(next_steps(*arguments, **options))


def test_the_four_verdicts_have_steps_of_their_own() -> None:
    assert len({verdict(r).name for r in ALL}) == 4
    assert len({tuple(next_steps(r)) for r in ALL}) == 4
    assert all(step.endswith((".", ")")) and step[0].isupper() for r in ALL for step in next_steps(r))


def test_repetition_halves_the_learning_rate_first_and_raises_beta() -> None:
    for outcome in (BETTER, SMALL, WORSE, UNDECIDED):
        steps = next_steps(outcome, worse=["repeats", "unfinished"], beta=0.1, learning_rate=5e-6, epochs=3)
        assert steps[0].startswith("Halve the learning rate (5e-06 to 2.5e-06) first")
        assert "higher beta (now 0.1): 0.2 to 0.5" in steps[1]
        assert "one epoch instead of 3" in steps[2]
        assert "lower beta" not in " ".join(steps).casefold()


def test_what_is_there_already_is_not_advised() -> None:
    steps = text(BETTER, worse=["repeats"], beta=0.5, epochs=1)
    assert "beta" not in steps
    assert "epoch" not in steps
    assert "Not a lower beta than now (now 0.05)" in text(SMALL, beta=0.05)


def test_worse_without_degeneration_checks_the_data_first() -> None:
    steps = next_steps(WORSE)
    assert "preftune audit" in steps[0]
    assert "swapped" in steps[0]
    assert steps[1].startswith("If the data are good, halve the learning rate")


def test_too_little_change_lowers_beta() -> None:
    for outcome in (SMALL, UNDECIDED):
        steps = text(outcome)
        order = [
            steps.index(words) for words in ("better pairs", "higher learning rate within its range", "lower beta")
        ]
        assert order == sorted(order)
        assert "5e-7 to 5e-6" in steps
        assert "higher beta" not in steps


def test_no_step_has_beta_the_wrong_way_round() -> None:
    for outcome in ALL:
        for worse in ((), ("repeats",)):
            for step in next_steps(outcome, worse=worse):
                if "higher beta" in step:
                    assert "closer" in step
                if re.search("lower beta", step, re.IGNORECASE):
                    assert "further" in step


def test_beta_is_advised_on_where_it_holds_the_model_near_a_reference() -> None:
    for outcome in ALL:
        for worse in ((), ("repeats",)):
            assert "beta" not in text(outcome, worse=worse, beta=2.0, usual_beta=False).replace("data and beta", "")
            assert "0.2 to 0.5" not in text(outcome, worse=worse, method="grpo", beta=0.04)
    assert "a higher beta (now 0.04): the penalty keeps" in text(WORSE, worse=("repeats",), method="grpo", beta=0.04)


@pytest.mark.parametrize(
    ("method", "losses", "usual"),
    [
        ("dpo", ["sigmoid"], True), ("dpo", ["sigmoid", "sft"], True), ("dpo", ["simpo"], False),
        ("dpo", ["sppo_hard"], False),
        ("cpo", ["sigmoid"], False), ("orpo", ["orpo"], False), ("kto", "kto", True), ("sft", None, True),
    ],
)  # fmt: skip
def test_which_runs_have_a_beta_like_dpos(method: str, losses: object, usual: bool, tmp_path: Path) -> None:
    from preftune.cli.commands.eval_training import trained_with

    configuration = {"beta": 0.1, "loss_type": losses, "learning_rate": 1e-6}
    (tmp_path / "run.json").write_text(json.dumps({"method": method, "configuration": configuration}))
    assert trained_with(str(tmp_path))["usual_beta"] is usual


def test_undecided_names_the_prompts_that_are_missing() -> None:
    assert next_steps(UNDECIDED)[0] == "First evaluate on about 97 more prompts."  # 197 - 100
    narrow = next_steps(result(0.505, 0.47, 0.54, prompts=900))
    assert "more prompts first" not in narrow[0]
    assert "narrow around 50%" in narrow[0]
    assert any(
        step.startswith("70% of the comparisons are ties") for step in next_steps(result(0.55, 0.4, 0.7, ties=70))
    )


def test_a_judge_that_contradicts_itself_is_named() -> None:
    assert "judge-check" in text(BETTER, contradicted=0.3)
    assert "judge-check" not in text(BETTER, contradicted=0.1)


@pytest.mark.parametrize("doubt", [{"unread": 0.9}, {"unread": 0.3, "contradicted": 0.4}, {"contradicted": 0.9}])
def test_ties_of_a_judge_that_does_not_decide_are_no_reason_to_change_the_training(doubt: dict) -> None:
    for outcome in (UNDECIDED, SMALL):
        steps = text(outcome, **doubt)
        assert "learning rate" not in steps
        assert "beta" not in steps
        assert "judge" in steps
    assert "--ask_again" not in text(BETTER, unread=0.1)
    assert "--ask_again" in text(BETTER, unread=0.3)


def test_a_judge_that_only_ties_is_named_beside_spoilt_answers() -> None:
    steps = next_steps(UNDECIDED, worse=["repeats"], judge_only_ties=True)
    assert steps[0].startswith("Halve the learning rate")
    assert steps[-1].startswith("Check the judge before the model")


def test_a_learning_rate_above_its_range_is_not_to_be_raised() -> None:
    assert "Not a higher learning rate than now (now 0.001)" in text(SMALL, learning_rate=1e-3)
    assert "Then a higher learning rate within its range (now 5e-06)" in text(SMALL, learning_rate=5e-6)


@pytest.mark.parametrize(("shift", "words"), [(1.2, "length is"), (-1.2, "by the length of its answers")])
def test_length_has_its_say(shift: float, words: str) -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(1.0, 1.0, 600)
    outcomes = (rng.random(600) < 1 / (1 + np.exp(-1.5 * shift * differences))).astype(float)
    controlled = length_controlled(outcomes, differences)
    steps = text(BETTER if shift > 0 else WORSE, length_controlled=controlled)
    assert (words if shift < 0 else "Part of this is length") in steps


def test_what_the_judge_prefers_is_what_the_pairs_are_searched_for() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(-1.0, 1.0, 600)
    outcomes = (rng.random(600) < 1 / (1 + np.exp(1.8 * differences))).astype(float)
    assert "are shorter, and balance them" in text(BETTER, length_controlled=length_controlled(outcomes, differences))


def test_a_run_of_so_many_steps_has_the_epochs_of_its_log(tmp_path: Path) -> None:
    from preftune.cli.commands.eval_training import trained_with

    facts = {"method": "dpo", "configuration": {"num_train_epochs": 3, "max_steps": 6, "loss_type": "sigmoid"}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert trained_with(str(tmp_path))["epochs"] is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 6, "epoch": 0.75}\n')
    assert trained_with(str(tmp_path))["epochs"] == 0.75


def test_a_model_that_was_trained_on_plain_text_is_named(tmp_path: Path) -> None:
    from preftune.cli.commands.eval_training import plain_text_note

    assert plain_text_note(str(tmp_path)) is None
    note = "51 rows are plain text and tokenised without a template, although the tokenizer has a chat template."
    (tmp_path / "run.json").write_text(json.dumps({"notes": ["51 rows are read.", note]}))
    said = plain_text_note(str(tmp_path))
    assert said is not None
    assert "was trained on plain text, and this evaluation asks in the chat template" in said
    assert "--as_chat" in said
    (tmp_path / "run.json").write_text(json.dumps({"notes": ["51 rows are read."]}))
    assert plain_text_note(str(tmp_path)) is None
