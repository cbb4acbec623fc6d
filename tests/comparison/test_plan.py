"""Budgets and trials: what is asked for is what both methods get."""

from __future__ import annotations

import dataclasses

import pytest

from preftune.comparison.plan import TUNED, USUAL, Budget, check_names, labels, parse_grid, parse_settings, tried
from preftune.errors import RequestError
from preftune.training import DPOConfig, RewardConfig
from preftune.training.ppo import PPOConfig


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
    trials = tried({"dpo": {"beta": ["0.1", "1"], "learning_rate": ["1e-5", "1e-4"]}, "ppo": {"kl_coef": list("1234")}})
    assert trials["dpo"] == [
        {"beta": beta, "learning_rate": rate} for beta in ("0.1", "1") for rate in ("1e-5", "1e-4")
    ]
    usual = tried({"dpo": {"learning_rate": ["1e-5"]}, "ppo": {}})
    assert [settings["beta"] for settings in usual["dpo"]] == list(USUAL["dpo"]["beta"])
    assert all(settings["learning_rate"] == "1e-5" for settings in usual["dpo"])
    assert [settings["kl_coef"] for settings in usual["ppo"]] == list(USUAL["ppo"]["kl_coef"])


def test_a_method_that_would_get_more_trials_is_refused():
    with pytest.raises(RequestError, match="4 of DPO, 3 of PPO: each method gets the same number"):
        tried({"dpo": {"beta": ["1", "2", "3", "4"]}})


def test_a_trial_is_called_by_what_differs():
    grid = [{"beta": "0.1", "learning_rate": "1e-5"}, {"beta": "0.3", "learning_rate": "1e-5"}]
    assert labels(grid, "dpo") == ["beta 0.1", "beta 0.3"]
    assert labels([{"beta": "0.1", "learning_rate": "1e-5"}], "dpo") == ["beta 0.1"]


def test_words_are_read_as_names_and_values():
    assert parse_grid(["beta=0.1,0.3", "--learning-rate=1e-5"], "--dpo") == {
        "beta": ["0.1", "0.3"],
        "learning_rate": ["1e-5"],
    }
    assert parse_settings(["use_peft=true"], "--both") == {"use_peft": "true"}


@pytest.mark.parametrize(("words", "said"), [
    (["beta"], "give NAME=VALUE"), (["beta="], "give NAME=VALUE"), (["=3"], "give NAME=VALUE"),
    (["beta=1", "beta=2"], "there twice"), (["beta=0.1,0.1"], "would be tried twice"),
])  # fmt: skip
def test_words_that_say_nothing_are_refused(words, said):
    with pytest.raises(RequestError, match=said):
        parse_grid(words, "--dpo")


def test_settings_of_all_trials_have_one_value():
    with pytest.raises(RequestError, match="these are for all trials"):
        parse_settings(["learning_rate=1e-5,1e-4"], "--both")


def test_names_are_checked_with_the_nearest_one():
    with pytest.raises(RequestError, match="Did you mean 'beta'"):
        check_names({"bata": 1}, ["beta", "seed"], "--dpo", ours=())
    with pytest.raises(RequestError, match="the comparison sets seed itself"):
        check_names({"seed": 1}, ["beta", "seed"], "--dpo", ours=["seed"])


@pytest.mark.parametrize(("name", "config"), [("dpo", DPOConfig), ("reward", RewardConfig), ("ppo", PPOConfig)])
def test_the_settings_that_are_counted_are_there(name, config):
    known = {field.name for field in dataclasses.fields(config)}
    assert set(TUNED[name]) <= known
    assert len(set(TUNED[name])) == len(TUNED[name])
