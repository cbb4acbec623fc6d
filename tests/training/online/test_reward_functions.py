"""Rewards that cannot be used end the run with their name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import preftune
from preftune.errors import ConfigError, RequestError
from preftune.training.online.reward_functions import BatchFunction
from tests.training.online.test_group_trainer import made
from tests.training.ppo.ppo_runs import PROMPTS
from tiny import tiny_model, tiny_tokenizer

ITEMS = [("a?", "b", {}), ("c?", "d", {})]


def test_rewards_that_cannot_be_used(tmp_path):
    def short(completions, **_):
        return [1.0]

    def compares(prompt, answer_a, answer_b, row) -> str:
        return "a"

    with pytest.raises(RequestError, match="returned 1 number for 16 answers"):
        made(tmp_path, short).train()
    with pytest.raises(ConfigError, match="a reward rates one"):
        made(tmp_path, compares)
    for nothing in (None, [], ()):
        with pytest.raises(ConfigError, match="a reward must rate the answers"):
            made(tmp_path, nothing)
    with pytest.raises(ConfigError, match="has 2 weights for 1 reward "):
        made(tmp_path, reward_weights=[1.0, 1.0])
    with pytest.raises(ConfigError, match="Linear is not a reward model"):
        made(tmp_path, torch.nn.Linear(1, 1))


def test_an_empty_list_is_not_a_reward_of_ppo_or_online_dpo_either(tmp_path):
    options: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    given: dict[str, Any] = {"train_dataset": PROMPTS, "processing_class": tiny_tokenizer()}
    with pytest.raises(ConfigError, match="a reward must rate the answers"):
        preftune.PPOTrainer(tiny_model(), preftune.PPOConfig(**options), reward=[], **given)
    with pytest.raises(ConfigError, match="a reward must rate the answers"):
        preftune.OnlineDPOTrainer(tiny_model(), preftune.OnlineDPOConfig(**options), reward_funcs=[], **given)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "returned None, not a list, for 2 answers. Its return is probably missing. Return a list"),
        (5, "returned 5, not a list, for 2 answers. Return a list with one number per answer"),
        (torch.tensor(1.0), r"returned tensor\(1.\), not a list, for 2 answers"),
        ("ab", "returned 'ab', not a list"),
        ({"a": 1, "b": 2}, "returned {'a': 1, 'b': 2}, not a list"),
    ],
)
def test_a_single_value_in_place_of_a_list(returned, says):
    def reward(completions, **_):
        return returned

    async def later(completions, **_):
        return returned

    for function in (reward, later):
        with pytest.raises(RequestError, match=rf"Reward '{function.__name__}' {says}"):
            BatchFunction(function).score_all(ITEMS)


def test_any_iterable_of_numbers_is_a_list():
    for values in ((1.0, 2.0), torch.tensor([1.0, 2.0]), (float(n) for n in (1, 2))):
        assert BatchFunction(lambda completions, values=values: values).score_all(ITEMS) == [1.0, 2.0]


def test_a_huge_reward_is_not_written_out(tmp_path):
    for digits in (400, 6000):
        with pytest.raises(RequestError, match=r"Scorer 'huge' answered .*; a scorer answers a finite") as caught:
            made(tmp_path, _huge(digits)).train()
        assert len(str(caught.value)) < 300


def _huge(digits: int) -> Any:
    def huge(completions, **_):
        return [10**digits] * len(completions)

    return huge


def test_a_weighted_reward_that_is_not_finite_ends_the_run_with_its_name(tmp_path):
    """It trained nothing, and the run was "finished"."""

    def small(completions, **_):
        return [1.0] * len(completions)

    def large(completions, **_):
        return [float(n) for n, _ in enumerate(completions)]

    trainer = made(tmp_path, [small, large], reward_weights=[1.0, 1e308])
    with pytest.raises(RequestError, match=r"is not a finite number: reward 'large' gave 1, and its weight is 1e\+308"):
        trainer.train()


def test_the_scale_of_the_rewards_does_not_change_the_advantages(tmp_path):
    """The square of 1e25 is not a float32: the deviation was infinite, and the advantages 0."""
    of = [made(tmp_path / str(weight), reward_weights=[weight], max_steps=1) for weight in (1.0, 1e25)]
    rollouts = of[0].sample([place for place in range(4) for _ in range(4)])
    one, other = (trainer.advantages(*(trainer._rewards_of(rollouts, 4)[0], torch.zeros(4, 4))) for trainer in of)
    assert one.abs().max() > 0.5
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
