"""Budgets and trials: what is asked for is what all methods get."""

from __future__ import annotations

import pytest

from preftune.comparison.methods import METHODS
from preftune.comparison.plan import Budget, check_names, labels, parse_grid, parse_settings, tried
from preftune.errors import RequestError

DPO, PPO, IPO, SIMPER = (METHODS[name] for name in ("dpo", "ppo", "ipo", "simper"))


@pytest.mark.parametrize(
    ("words", "unit", "amount", "shown"),
    [
        ("90s", "seconds", 90, "1.5 min"),
        ("10m", "seconds", 600, "10.0 min"),
        ("2 h", "seconds", 7200, "2.0 h"),
        ("0.5h", "seconds", 1800, "30.0 min"),
        ("500_000tokens", "tokens", 500_000, "500,000 tokens"),
        ("1e6tokens", "tokens", 1_000_000, "1,000,000 tokens"),
        ("2,000 pairs", "pairs", 2000, "2,000 pairs"),
    ],
)
def test_a_budget_is_a_time_or_so_many_tokens_or_pairs(words, unit, amount, shown):
    budget = Budget.parse(words)
    assert (budget.unit, budget.amount, budget.words()) == (unit, amount, shown)


@pytest.mark.parametrize("words", ["10", "ten minutes", "10x", "0s", "-5m", "", "0.2pairs", "1e999s"])
def test_an_impossible_budget_is_refused(words):
    with pytest.raises(RequestError, match="--budget"):
        Budget.parse(words)


def test_half_of_it_is_the_reward_models_and_what_is_left_is_ppos():
    budget = Budget("pairs", 100)
    assert budget.half() == Budget("pairs", 50)
    assert budget.less(30) == Budget("pairs", 70)


def test_all_combinations_are_tried_and_a_methods_strength_is_always_among_them():
    grids = {"dpo": {"beta": ["0.1", "1"], "learning_rate": ["1e-5", "1e-4"]}, "ppo": {"kl_coef": list("1234")}}
    trials = tried([DPO, PPO], grids, shared={})
    assert trials["dpo"] == [
        {"beta": beta, "learning_rate": rate} for beta in ("0.1", "1") for rate in ("1e-5", "1e-4")
    ]
    usual = tried([DPO, PPO], {"dpo": {"learning_rate": ["1e-5"]}, "ppo": {}}, shared={})
    assert [settings["beta"] for settings in usual["dpo"]] == ["0.1", "0.05", "0.3"]
    assert all(settings["learning_rate"] == "1e-5" for settings in usual["dpo"])
    assert [settings["kl_coef"] for settings in usual["ppo"]] == ["0.05", "0.02", "0.2"]


def test_as_many_usual_values_as_asked_for_or_as_another_method_has_values_of_its_own():
    assert tried([DPO, IPO], {}, number=1, shared={}) == {"dpo": [{"beta": "0.1"}], "ipo": [{"beta": "0.1"}]}
    found = tried([DPO, IPO], {"dpo": {"beta": ["0.2", "0.4"]}}, shared={})
    assert found["ipo"] == [{"beta": "0.1"}, {"beta": "0.03"}]


@pytest.mark.parametrize(("shared", "rates"), [
    ({}, ["5e-07", "1.5e-07"]), ({"use_peft": "true"}, ["5e-06", "1.5e-06"]),
    ({"use_peft": "true", "learning_rate": "1e-4"}, ["0.0001", "3e-05"]),
])  # fmt: skip
def test_without_a_beta_the_learning_rate_is_tried_around_that_of_the_others(shared, rates):
    assert [one["learning_rate"] for one in tried([SIMPER], {}, number=2, shared=shared)["simper"]] == rates


def test_a_method_that_would_get_more_trials_is_refused():
    with pytest.raises(RequestError, match="4 of DPO, 3 of PPO: all methods must have the same number"):
        tried([DPO, PPO], {"dpo": {"beta": ["1", "2", "3", "4"]}}, shared={})


def test_a_trial_is_called_by_what_differs():
    grid = [{"beta": "0.1", "learning_rate": "1e-5"}, {"beta": "0.3", "learning_rate": "1e-5"}]
    assert labels(grid, "beta") == ["beta 0.1", "beta 0.3"]
    assert labels([{"beta": "0.1", "learning_rate": "1e-5"}], "beta") == ["beta 0.1"]


def test_words_are_read_as_names_and_values():
    assert parse_grid(["beta=0.1,0.3", "--learning-rate=1e-5"], "--dpo") == {
        "beta": ["0.1", "0.3"],
        "learning_rate": ["1e-5"],
    }
    assert parse_settings(["use_peft=true"], "--both") == {"use_peft": "true"}


@pytest.mark.parametrize(("words", "said"), [
    (["beta"], "give NAME=VALUE"), (["beta="], "give NAME=VALUE"), (["=3"], "give NAME=VALUE"),
    (["beta=1", "beta=2"], "given twice"), (["beta=0.1,0.1"], "would be tried twice"),
])  # fmt: skip
def test_words_that_say_nothing_are_refused(words, said):
    with pytest.raises(RequestError, match=said):
        parse_grid(words, "--dpo")


def test_settings_of_all_trials_have_one_value():
    with pytest.raises(RequestError, match="these settings apply to all trials"):
        parse_settings(["learning_rate=1e-5,1e-4"], "--both")


def test_names_are_checked_with_the_nearest_one():
    with pytest.raises(RequestError, match="Did you mean 'beta'"):
        check_names({"bata": 1}, ["beta", "seed"], "--dpo", ours=())
    with pytest.raises(RequestError, match="the comparison sets seed itself"):
        check_names({"seed": 1}, ["beta", "seed"], "--dpo", ours=["seed"])
