"""Options of PPO that cannot hold, and what they plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.errors import ConfigError
from preftune.training.ppo import PPOConfig, PPOTrainer
from tiny import tiny_model, tiny_tokenizer

from .ppo_runs import PROMPTS, config, letters_and_noise, lora, trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5 must be between 0 and 1"),
        ({"cliprange": 0}, "cliprange=0"),
        ({"kl_estimator": "k2"}, "k1, k3"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"missing_eos_penalty": -1.0}, "subtracted"),
        ({"kl_coef": 0, "kl_target": 6}, "would stay 0"),
        ({"max_disagreement": 1.0, "reward_model": ["x"]}, "needs an ensemble"),
        ({"value_model": "x", "value_init": "reward"}, "Leave one out"),
        ({"eval_strategy": "steps"}, "not honoured where answers are sampled"),
        ({"load_best_model_at_end": True}, "not honoured"),
        ({"torch_compile": True}, "not honoured where answers"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"reward_ensemble": "max"}, "mean, min, mean-std"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"engine": "naive", "temperature": 0.7}, "naive engine"),
        ({"neftune_noise_alpha": 5}, "not honoured"),
    ],
)
def test_impossible_options_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **options)


def test_the_plan(tmp_path: Path) -> None:
    """Eight prompts, rounds of four answers, two steps each."""
    assert trainer(tmp_path, max_steps=-1).args.max_steps == 4
    assert trainer(tmp_path, max_steps=-1, num_train_epochs=3).args.max_steps == 12
    assert trainer(tmp_path, max_steps=-1, total_episodes=20, num_ppo_epochs=4).args.max_steps == 5 * 8
    with pytest.raises(ConfigError, match="max_steps and total_episodes"):
        trainer(tmp_path, max_steps=3, total_episodes=20)
    plain = PPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert (plain.learning_rate, plain.logging_steps) == (None, 16)
    full = PPOTrainer(tiny_model(), plain, PROMPTS, reward=letters_and_noise, processing_class=tiny_tokenizer())
    assert full.args.learning_rate == 3e-6
    part = PPOTrainer(
        tiny_model(), plain, PROMPTS, reward=letters_and_noise, processing_class=tiny_tokenizer(), peft_config=lora()
    )
    assert part.args.max_steps == full.args.max_steps, "a configuration serves two trainers"
    assert part.args.learning_rate == 3e-5
