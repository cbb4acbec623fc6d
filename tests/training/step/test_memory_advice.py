"""What each fix of an out-of-memory error would save."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from preftune.plan.activations import kept_bytes
from preftune.plan.workload import MicroBatch, RowLengths
from preftune.training.step.memory_advice import savings
from preftune.types import TokenizedGroup
from tests.training.dpo_runs import lora_model, trainer
from tiny import tiny_model


def test_what_a_fix_would_save_is_computed_from_the_model_and_the_pair(tmp_path):
    """Weights by hand: 2 layers of width 32 and inner width 48 in float32. Activations as the plan has them."""
    made = trainer(tiny_model(), tmp_path)
    group = TokenizedGroup([5] * 60, ([6] * 30, [7] * 10), ())
    parameters = sum(p.numel() for p in made.model.parameters())
    linear = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    settings, batch = made.plan.settings, MicroBatch.of([RowLengths.of(group)])
    everything = kept_bytes(made.plan.shape, settings, batch)
    inputs = kept_bytes(made.plan.shape, replace(settings, checkpointing=True), batch)
    saved = savings(made, group, training=True)
    assert saved.checkpointing == everything - inputs
    assert saved.adapter == parameters * 12
    assert saved.four_bit == linear * 3.5 + parameters * 12
    assert saved.half_length == everything / 2
    assert saved.half_model == (parameters * 4 + parameters * 12 + everything) / 2
    scoring = savings(made, group, training=False)
    assert (scoring.half_length, scoring.four_bit) == (None, linear * 3.5)
    made.model.config = SimpleNamespace()  # says nothing of layers
    assert savings(made, group, training=True).checkpointing is None


def test_the_estimate_is_what_autograd_keeps(tmp_path):
    """Parameters are not activations."""
    made = trainer(lora_model(tiny_model(hidden_size=128, intermediate_size=384, num_hidden_layers=6)), tmp_path)
    own = {p.untyped_storage().data_ptr() for p in made.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = made._batch_of([0])
    made.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = made.engine(made.model, batch)
    assert answer.token_logps_T.requires_grad
    saved = savings(made, batch.groups[0], training=True)
    assert 2 * saved.half_length == pytest.approx(sum(kept.values()), rel=0.02)
