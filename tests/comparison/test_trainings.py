"""What holds a training to its budget, whichever unit it has."""

from __future__ import annotations

import pytest

from preftune.comparison.data import Parts
from preftune.comparison.plan import Budget
from preftune.comparison.trainings import _GENERATIONS, _MINI_BATCHES, _batch, _limit
from preftune.training import DPOConfig, RewardConfig
from preftune.training.online import GRPOConfig, NashMDConfig, RLOOConfig, XPOConfig
from preftune.training.ppo import PPOConfig
from preftune.types import PreferencePair

# 30 pairs of 15 prompts
PARTS = Parts([PreferencePair(f"{number // 2}?", "yes", "no") for number in range(30)], [], [], [])


@pytest.mark.parametrize(
    ("command", "settings", "limit"),
    [
        ("dpo", {}, {"max_steps": 250}),  # batches of 8
        ("dpo", {"per_device_train_batch_size": "4", "gradient_accumulation_steps": "4"}, {"max_steps": 125}),
        ("dpo", {"num_train_epochs": "2"}, {"max_steps": 8}),  # its epochs end it before its budget does
        ("reward", {"num_train_epochs": "0.5", "per_device_train_batch_size": "1"}, {"max_steps": 15}),
        ("ppo", {}, {"total_episodes": 4000}),
        ("ppo", {"num_mini_batches": "3", "per_device_train_batch_size": "10"}, {"total_episodes": 3990}),
        ("ppo", {"total_episodes": "64"}, {"total_episodes": 64}),
        ("ppo", {"num_train_epochs": "4"}, {"total_episodes": 60}),
        ("kto", {}, {"max_steps": 500}),  # two answers a pair
        ("kto", {"num_train_epochs": "2"}, {"max_steps": 16}),
        ("grpo", {}, {"total_episodes": 4000}),
        ("rloo", {"per_device_train_batch_size": "24", "num_generations": "4"}, {"total_episodes": 3984}),
        ("grpo", {"num_train_epochs": "4", "num_generations": "4"}, {"total_episodes": 240}),
        ("rloo", {"num_train_epochs": "4"}, {"total_episodes": 120}),  # two answers to a prompt
        ("online", {"num_generations": "3"}, {"total_episodes": 3984}),  # batches of 8 prompts
        ("xpo", {}, {"total_episodes": 4000}),
        ("nash-md", {"num_train_epochs": "4"}, {"total_episodes": 120}),
    ],
)
def test_a_budget_in_pairs_is_kept_and_what_ends_earlier_by_its_own_settings_does(command, settings, limit):
    assert _limit(command, Budget("pairs", 2000), settings, PARTS) == limit


def test_whole_steps_and_rounds_fit_into_the_budget_and_one_is_always_made():
    assert _limit("dpo", Budget("pairs", 23), {}, PARTS) == {"max_steps": 2}
    assert _limit("ppo", Budget("pairs", 23), {}, PARTS) == {"total_episodes": 32}  # of 46, rounds of 32
    assert _limit("dpo", Budget("pairs", 3), {}, PARTS) == {"max_steps": 1}
    assert _limit("ppo", Budget("pairs", 3), {}, PARTS) == {"total_episodes": 32}


def test_time_and_tokens_are_limits_of_the_training_itself():
    assert _limit("dpo", Budget("seconds", 90.5), {}, PARTS) == {"max_seconds": 90.5}
    found = _limit("ppo", Budget("tokens", 5000), {}, PARTS)
    assert found["max_train_tokens"] == 5000
    assert found["total_episodes"] > 1_000_000
    assert _limit("ppo", Budget("tokens", 5000), {"total_episodes": "64"}, PARTS) == {"max_train_tokens": 5000}


def test_the_usual_batches_are_those_of_the_trainings(tmp_path):
    for config in (DPOConfig, RewardConfig, PPOConfig, GRPOConfig, RLOOConfig, XPOConfig, NashMDConfig):
        made = config(output_dir=str(tmp_path), use_cpu=True)
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps == _batch({})
        if hasattr(made, "num_generations"):
            command = config.__name__.removesuffix("Config").lower().replace("nashmd", "nash-md")
            assert made.num_generations == _GENERATIONS[command]
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True).num_mini_batches == _MINI_BATCHES
