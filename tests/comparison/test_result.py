"""What is said follows from the intervals, and the table holds what the figures are."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from preftune.comparison.chart import frontier
from preftune.comparison.methods import METHODS
from preftune.comparison.page import comparison_page
from preftune.comparison.plan import Budget
from preftune.comparison.result import Duel, Final, Result, Tried, mirrored
from preftune.statistics.bradley_terry import Game, bradley_terry
from preftune.statistics.intervals import mean_interval, win_rate

BOTH = ("dpo", "ppo")


def outcome(seconds: float = 60.0, **more) -> dict:
    return {"finished": True, "seconds": seconds, "spent": {}, "steps": 8, "peak_gb": 1.5, "error": "", **more}


def tried(method: str, number: int, *, kl: float, reward: float, chosen: bool = False, **more) -> Tried:
    distance = {
        "kl": {"mean": kl, "low": kl - 0.5, "high": kl + 0.5, "standard_error": 0.25},
        "gold": {"mean": reward, "low": reward - 0.1, "high": reward + 0.1, "standard_error": 0.05},
        "tokens": 12.0,
    }
    values = {
        "method": METHODS[method],
        "number": number,
        "settings": {},
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


def result(outcomes, *, names: Sequence[str] = BOTH, **more) -> Result:
    """Args:
    outcomes: of each direct comparison, or of all of them.
    """
    trials = [tried(m, n, kl=n + (m == "ppo"), reward=0.3 * n, chosen=n == 1) for n in (1, 2) for m in names]
    finals = [
        Final(
            method=METHODS[name],
            label="strength 1",
            against_start=win_rate([1.0] * 40 + [0.0] * 10),
            per_seed=[win_rate([1.0] * 40 + [0.0] * 10)],
            kl=mean_interval([1.0, 2.0, 3.0]),
            gold=mean_interval([0.1, 0.2, 0.6]),
            tokens=11.5,
            trials=[next(t for t in trials if t.method.name == name)],
            right=0.75,
        )
        for name in names
    ]
    games = [Game(name, "start", float(n < 40), n) for name in names for n in range(50)]
    duels = []
    confidence = 1 - 0.05 / math.comb(len(names), 2)
    for number, (first, second) in enumerate(itertools.combinations(names, 2)):
        found = outcomes if isinstance(outcomes[0], float) else outcomes[number]
        strict = win_rate(found, confidence=confidence)
        duels.append(Duel(METHODS[first], METHODS[second], win_rate(found), strict))
        games += [Game(first, second, outcome, n) for n, outcome in enumerate(found)]
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
        "duels": duels,
        "scores": bradley_terry(games, anchor="start"),
        "start_gold": mean_interval([0.0, 0.1]),
        "start_tokens": 20.0,
        "start_right": 0.5,
        "examples": [
            {
                "id": "1", "prompt": "<b>why</b>?", "answers": {"start": "s", **dict.fromkeys(names, "d")},
                "outcomes": dict.fromkeys(names, "loss"),
            }
        ],
        "reward_accuracy": 0.9,
    }  # fmt: skip
    return Result(**{**values, **more})


AHEAD, BEHIND, EVEN = [1.0] * 40 + [0.0] * 10, [0.0] * 40 + [1.0] * 10, [1.0] * 27 + [0.0] * 23


def test_an_interval_with_50_percent_in_it_shows_no_difference():
    said = result(EVEN).verdict()
    assert said.startswith("No difference shown: DPO's answers win 54.0% against PPO's (95% interval ")
    assert "would show a difference of this size" in said


@pytest.mark.parametrize(("outcomes", "first", "other"), [(AHEAD, "DPO", "PPO"), (BEHIND, "PPO", "DPO")])
def test_one_without_it_names_who_is_ahead_by_how_much(outcomes, first, other):
    found = result(outcomes)
    assert found.verdict().startswith(f"{first} is ahead: {first}'s answers win 80.0% against {other}'s (95% interval ")
    rate = found.duels[0].rate if first == "DPO" else mirrored(found.duels[0].rate)
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


def test_cautions_are_reported():
    found = result(EVEN, tried=[*result(EVEN).tried, tried("ppo", 3, kl=1, reward=0, finished=False)])
    said = " ".join(found.sentences())
    assert "There is one seed" in said
    assert "These trials did not finish, and count as trials: PPO with strength 3" in said
    assert "Two seeds are few" in " ".join(result(EVEN, seeds=[0, 1]).sentences())
    assert "seed" not in " ".join(result(EVEN, seeds=[0, 1, 2]).sentences()[1:])
    early = [replace(trial, used=20.0) for trial in result(EVEN).tried]
    assert "DPO ended by itself after 20 s of 1.7 min" in " ".join(result(EVEN, tried=early).sentences())


def test_a_budget_that_was_not_kept_is_reported():
    late = [replace(trial, used=150.0) if trial.method.name == "ppo" else trial for trial in result(EVEN).tried]
    said = " ".join(result(EVEN, tried=late).sentences())
    assert "PPO used up to 2.5 min of 1.7 min" in said
    assert "DPO used up to" not in said


def test_verdicts_that_could_not_be_read_are_reported():
    assert "could not be read" not in " ".join(result(EVEN).sentences())
    unread = win_rate(EVEN, unread=[True] * 3 + [False] * 47)
    found = result(EVEN, duels=[replace(result(EVEN).duels[0], rate=unread)])
    assert "3 of 150 verdicts could not be read: they count as ties" in " ".join(found.sentences())
    assert found.to_dict()["duels"][0]["unread"] == 3


MANY = ("dpo", "ipo", "kto", "simpo")


def test_of_many_the_one_that_beats_all_others_is_named_with_its_nearest_rival():
    close, clear = [1.0] * 38 + [0.0] * 12, [1.0] * 45 + [0.0] * 5
    said = result([close, clear, clear, EVEN, EVEN, EVEN], names=MANY).verdict()
    assert said.startswith("DPO is ahead: DPO's answers win 76.0% against IPO's (95% interval ")
    assert "its nearest rival" in said


def test_of_many_what_cannot_be_distinguished_is_named():
    said = result([EVEN, AHEAD, AHEAD, EVEN, EVEN, EVEN], names=MANY).verdict()
    assert said.startswith(
        "No single winner: DPO has the best score, but no difference is shown from IPO; it is ahead of KTO and SimPO."
    )


def test_a_difference_must_hold_with_all_comparisons_taken_together():
    """65% of 60 is shown alone, and not among six comparisons."""
    some = [1.0] * 39 + [0.0] * 21
    assert result(some).verdict().startswith("DPO is ahead")
    found = result([some] * 6, names=MANY)
    assert found.duels[0].rate.ci_low > 0.5 > found.duels[0].strict.ci_low
    assert found.verdict().startswith("No difference shown: no method is shown to be better than another of the 4. ")
    assert found.to_dict()["duels"][0]["ahead"] is None


def test_many_methods_have_a_row_each_and_a_table_of_their_comparisons():
    found = result([AHEAD, EVEN, EVEN, EVEN, EVEN, EVEN], names=MANY)
    header, rows = found.table()
    assert [row[0] for row in rows] == ["start", "DPO", "IPO", "KTO", "SimPO"]
    assert "Elo, over all comparisons" in header
    assert dict(zip(header, rows[0], strict=True))["Elo, over all comparisons"] == "1000"
    header, rows = found.duel_table()
    cells = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert cells["DPO"]["IPO"].startswith("80.0%")
    assert cells["DPO"]["IPO"].endswith("*")
    assert cells["IPO"]["DPO"].startswith("20.0%")
    assert cells["DPO"]["DPO"] == ""
    assert "*" not in cells["DPO"]["KTO"]
    page = comparison_page(found)
    assert "Against each other" in page
    assert "DPO, IPO, KTO or SimPO?" in page


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
    assert "ranks 90.0% of the pairs" in page


def test_the_chart_has_a_point_for_every_trial_that_was_measured():
    found = result(EVEN)
    drawn = frontier(found)
    assert [(v["method"], v["kl"], v["reward"]) for v in drawn["data"]["values"]] == [
        ("DPO", 1.0, 0.3), ("PPO", 2.0, 0.3), ("DPO", 2.0, 0.6), ("PPO", 3.0, 0.6),
    ]  # fmt: skip
    without = frontier(replace(found, gold=None))
    assert {v["reward"] for v in without["data"]["values"]} == {0.625}
    assert frontier(replace(found, tried=[replace(trial, distance=None) for trial in found.tried])) is None
