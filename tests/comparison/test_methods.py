"""What can be compared, and that every command takes what it would be given."""

from __future__ import annotations

from importlib import import_module

import pytest

from preftune.comparison.methods import METHODS, REWARD_TUNED, parse_methods
from preftune.losses.registry import LOSSES


def fields(command: str) -> set[str]:
    return {field.name for field in import_module(f"preftune.cli.train.{command.replace('-', '_')}").METHOD.fields()}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_the_command_knows_the_settings_that_are_counted_and_tried(method):
    known = fields(method.command)
    assert {*method.tuned, *method.fixed, method.strength} <= known
    assert len({*method.tuned}) == len(method.tuned)
    assert method.strength in method.tuned
    assert len(set(method.usual(3, {})[method.strength])) == 3


def test_those_of_a_reward_model_are_counted_where_one_is_trained():
    assert set(REWARD_TUNED) <= fields("reward")
    assert METHODS["dpo"].settings_to_tune == len(METHODS["dpo"].tuned)
    assert METHODS["ppo"].settings_to_tune == len(METHODS["ppo"].tuned) + len(REWARD_TUNED)


def test_every_loss_that_needs_neither_margins_nor_gold_answers_can_take_part():
    losses = {method.fixed.get("loss_type", "sigmoid") for method in METHODS.values() if method.command == "dpo"}
    assert losses == {name for name, loss in LOSSES.items() if not (loss.needs_margins or loss.needs_gold)}


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_the_authors_value_is_tried_first(method):
    first = float(method.usual(1, {})[method.strength][0])
    loss = LOSSES.get(method.fixed.get("loss_type", "sigmoid" if method.command == "dpo" else ""))
    if loss is not None:
        assert first == (loss.beta if loss.has_beta else loss.learning_rate)


def test_names_are_read_with_commas_and_hyphens():
    assert [method.name for method in parse_methods(["dpo,IPO", "apo-zero"])] == ["dpo", "ipo", "apo_zero"]
