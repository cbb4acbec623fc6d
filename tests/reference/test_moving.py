"""A reference that follows the policy: what it is after each move, what it costs, and how it is saved."""

from __future__ import annotations

import copy

import pytest
import torch

from preftune.errors import CheckpointError, ConfigError
from preftune.reference import MovingCopy
from preftune.reference.sources import FrozenCopy
from tests.training.dpo_runs import lora_model, nudge
from tiny import tiny_model

MODELS = {"full": tiny_model, "lora": lambda: lora_model(trained=True)}


def trained_weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_it_moves_by_a_share_of_the_way_each_time(model):
    source = MovingCopy(model)
    expected = {name: weight.double() for name, weight in trained_weights(model).items()}
    for _ in range(3):
        nudge(model, 0.1)
        source.follow(model, 0.6)
        now = trained_weights(model)
        expected = {name: 0.6 * now[name].double() + 0.4 * weight for name, weight in expected.items()}
    for name, weight in source._received.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-6, atol=1e-7)


def test_with_alpha_1_it_becomes_the_policy_and_is_no_view_of_it(model):
    source = MovingCopy(model)
    nudge(model, 0.1)
    source.follow(model, 1.0)
    before = trained_weights(model)
    assert all(torch.equal(source._received[name], weight) for name, weight in before.items())
    nudge(model, 0.1)
    assert all(torch.equal(source._received[name], weight) for name, weight in before.items())


def test_before_the_first_move_it_is_the_frozen_copy(model):
    moving, frozen = MovingCopy(model), FrozenCopy(model)
    assert moving.fingerprint == frozen.fingerprint
    assert moving.unchanged(model)
    nudge(model, 0.1)
    assert not moving.unchanged(model)
    moving.follow(model, 0.5)
    assert moving.unchanged(model)  # nothing is settled anew in the middle of a run


def test_it_costs_what_trains(model):
    assert MovingCopy(model).size == sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def test_saved_and_loaded_it_is_the_same_to_the_bit(model, tmp_path):
    source = MovingCopy(model)
    nudge(model, 0.1)
    source.follow(model, 0.3)
    source.save(tmp_path / "reference.safetensors")
    other = MovingCopy(model)
    other.load(tmp_path / "reference.safetensors")
    assert all(torch.equal(other._received[name], weight) for name, weight in source._received.items())
    assert other.moves


def test_a_checkpoint_without_it_or_with_another_models_is_refused(tmp_path):
    full, lora = MovingCopy(tiny_model()), MovingCopy(lora_model())
    with pytest.raises(CheckpointError, match="holds no reference"):
        full.load(tmp_path / "reference.safetensors")
    lora.save(tmp_path / "reference.safetensors")
    with pytest.raises(CheckpointError, match="reference of another model"):
        full.load(tmp_path / "reference.safetensors")


def test_it_begins_with_an_explicit_model():
    policy, start = tiny_model(), tiny_model(seed=7)
    source = MovingCopy(policy, start=copy.deepcopy(start))
    assert all(torch.equal(source._received[name], p) for name, p in start.named_parameters())
    assert not source.received
    with pytest.raises(ConfigError, match="do not have the same weights"):
        MovingCopy(lora_model(), start=start)
