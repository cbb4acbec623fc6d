"""What is said follows from the intervals, and the table holds what the figures are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from preftune.comparison.chart import frontier
from preftune.comparison.page import comparison_page
from preftune.comparison.plan import METHODS, Budget
from preftune.comparison.result import Final, Result, Tried, mirrored
from preftune.statistics.intervals import mean_interval, win_rate


def outcome(seconds: float = 60.0, **more) -> dict:
    return {"finished": True, "seconds": seconds, "spent": {}, "steps": 8, "peak_gb": 1.5, "error": "", **more}


def tried(method: str, number: int, *, kl: float, reward: float, chosen: bool = False, **more) -> Tried:
    distance = {
        "kl": {"mean": kl, "low": kl - 0.5, "high": kl + 0.5, "standard_error": 0.25},
        "gold": {"mean": reward, "low": reward - 0.1, "high": reward + 0.1, "standard_error": 0.05},
        "tokens": 12.0,
    }
    values = {
        "method": method,
        "number": number,
        "seed": 0,
        "label": f"strength {number}",
        "finished": True,
        "outcome": outcome(),
        "reward_outcome": outcome(30.0, peak_gb=2.5) if method == "ppo" else None,
        "used": 90.0,
        "win_rate": win_rate([1.0, 0.5, 0.0, 1.0]),
        "distance": distance,
        "chosen": chosen,
    }
    return Tried(**{**values, **more})


def result(outcomes, **more) -> Result:
    trials = [tried(m, n, kl=n + (m == "ppo"), reward=0.3 * n, chosen=n == 1) for n in (1, 2) for m in METHODS]
    finals = {
        method: Final(
            method=method,
            label="strength 1",
            against_start=win_rate([1.0] * 40 + [0.0] * 10),
            per_seed=[win_rate([1.0] * 40 + [0.0] * 10)],
            kl=mean_interval([1.0, 2.0, 3.0]),
            gold=mean_interval([0.1, 0.2, 0.6]),
            tokens=11.5,
            trials=[next(t for t in trials if t.method == method)],
            right=0.75,
        )
        for method in METHODS
    }
    values = {
        "start": "runs/sft",
        "data": {"name": "pairs.jsonl", "train": 100, "tune": 10, "test": 50, "held_out": 60},
        "budget": Budget("seconds", 100),
        "judge": "key-fact",
        "gold": "rule:m:f",
        "temperature": 0.0,
        "seeds": [0],
        "tried": trials,
        "finals": finals,
        "head_to_head": win_rate(outcomes),
        "start_gold": mean_interval([0.0, 0.1]),
        "start_tokens": 20.0,
        "start_right": 0.5,
        "examples": [
            {"id": "1", "prompt": "<b>why</b>?", "start": "s", "dpo": "d", "ppo": "p", "dpo_against_ppo": "loss"}
        ],
        "reward_accuracy": 0.9,
    }
    return Result(**{**values, **more})


AHEAD, BEHIND, EVEN = [1.0] * 40 + [0.0] * 10, [0.0] * 40 + [1.0] * 10, [1.0] * 27 + [0.0] * 23


def test_an_interval_with_50_percent_in_it_shows_no_difference():
    said = result(EVEN).verdict()
    assert said.startswith("No difference shown: DPO's answers win 54.0% against PPO's (95% interval ")
    assert "more prompts would show a difference of this size" in said


@pytest.mark.parametrize(("outcomes", "first", "other"), [(AHEAD, "DPO", "PPO"), (BEHIND, "PPO", "DPO")])
def test_one_without_it_names_who_is_ahead_by_how_much(outcomes, first, other):
    found = result(outcomes)
    assert found.verdict().startswith(f"{first} is ahead: {first}'s answers win 80.0% against {other}'s (95% interval ")
    rate = found.head_to_head if first == "DPO" else mirrored(found.head_to_head)
    assert f"{rate.ci_low:.1%} to {rate.ci_high:.1%}" in found.verdict()
    assert "this budget" in found.verdict()


def test_exactly_even_promises_nothing():
    assert "more prompts" not in result([1.0, 0.0] * 20).verdict()


def test_mirroring_twice_is_the_same():
    rate = win_rate(AHEAD)
    assert mirrored(mirrored(rate)).wins == rate.wins
    assert mirrored(rate).win_rate == pytest.approx(0.2)
    assert mirrored(rate).ci_low == pytest.approx(1 - rate.ci_high)


def test_ppo_pays_for_its_reward_model_in_time_and_memory():
    header, rows = result(EVEN).table()
    table = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert table["wall time, loading included"] == {"start": "", "DPO": "60 s", "PPO": "1.5 min"}
    assert table["peak memory"] == {"start": "", "DPO": "1.50 GB", "PPO": "2.50 GB"}
    assert table["models trained"]["PPO"] == "3: reward model, policy, value function"
    assert int(table["settings to tune"]["PPO"]) > int(table["settings to tune"]["DPO"])
    assert table["right answers"] == {"start": "50.0%", "DPO": "75.0%", "PPO": "75.0%"}
    assert "gold reward" in table
    assert "gold reward" not in {row[0] for row in result(EVEN, gold=None, start_gold=None).table()[1]}


def test_cautions_are_told():
    found = result(EVEN, tried=[*result(EVEN).tried, tried("ppo", 3, kl=1, reward=0, finished=False)])
    said = " ".join(found.sentences())
    assert "One seed" in said
    assert "Did not finish, and counts as a trial: PPO with strength 3" in said
    assert "One seed" not in " ".join(result(EVEN, seeds=[0, 1]).sentences())
    early = [replace(trial, used=20.0) for trial in result(EVEN).tried]
    assert "DPO ended by itself after 20 s of 1.7 min" in " ".join(result(EVEN, tried=early).sentences())


def test_a_budget_that_was_not_kept_is_told():
    late = [replace(trial, used=150.0) if trial.method == "ppo" else trial for trial in result(EVEN).tried]
    said = " ".join(result(EVEN, tried=late).sentences())
    assert "PPO used up to 2.5 min of 1.7 min" in said
    assert "DPO used up to" not in said


def test_verdicts_that_could_not_be_read_are_told():
    assert "could not be read" not in " ".join(result(EVEN).sentences())
    finals = {method: replace(final, unread=2) for method, final in result(EVEN).finals.items()}
    found = result(EVEN, unread=3, finals=finals)
    assert "7 of 150 verdicts could not be read: they count as ties" in " ".join(found.sentences())
    assert found.to_dict()["unread_verdicts"] == 3
    assert found.to_dict()["methods"]["ppo"]["unread_verdicts"] == 2


def test_compare_json_is_strict_json():
    text = json.dumps(result(EVEN).to_dict(), allow_nan=False)
    found = json.loads(text)
    assert found["verdict"] == result(EVEN).verdict()
    assert [trial["chosen"] for trial in found["trials"]] == [True, True, False, False]
    assert found["trials"][1]["seconds"] == 90.0


def test_the_page_shows_all_of_it_and_no_markup_of_the_data():
    page = comparison_page(result(EVEN))
    for words in ("No difference shown", "Reward against KL", "strength 2", "&lt;b&gt;why&lt;/b&gt;?", "1.5 min"):
        assert words in page
    assert "<b>why" not in page
    assert "right on 90.0% of pairs" in page


def test_the_chart_has_a_point_for_every_trial_that_was_measured():
    found = result(EVEN)
    drawn = frontier(found)
    (values,) = drawn["datasets"].values()
    assert [(v["method"], v["kl"], v["reward"]) for v in values] == [
        ("DPO", 1.0, 0.3), ("PPO", 2.0, 0.3), ("DPO", 2.0, 0.6), ("PPO", 3.0, 0.6),
    ]  # fmt: skip
    without = frontier(replace(found, gold=None))
    assert {v["reward"] for v in next(iter(without["datasets"].values()))} == {0.625}
    assert frontier(replace(found, tried=[replace(trial, distance=None) for trial in found.tried])) is None
