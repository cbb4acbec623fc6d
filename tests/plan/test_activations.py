"""The formula of the activations against the tensors that autograd really saves, counted by their storages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preftune.logps import make_engine, pack
from preftune.models.precision import apply_precision
from preftune.plan.activations import kept_bytes, layer_bytes
from preftune.plan.devices import CARDS
from preftune.plan.shape import shape_of
from tests.plan.cases import batch_of, groups, model, settings


def saved_bytes(policy: Any, *, bf16: bool) -> int:
    """Bytes of all storages that the forward pass of a packed batch saves, parameters and buffers left out."""
    engine = make_engine(policy, "packed")
    own = {t.untyped_storage().data_ptr() for t in [*policy.parameters(), *policy.buffers()]}
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no address is used twice
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        engine(policy, pack(groups()))
    return sum(saved.values())


def made(name: str, how: Any, *, lora: bool, **options: Any) -> Any:
    policy = model(name, lora=lora, **options)
    apply_precision(policy, how.precision)
    return policy.train()


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "smollm3", "qwen3"])
def test_the_formula_is_exact(name, lora, bf16):
    how = settings(bf16=bf16)
    options = {"head_dim": 16} if name == "qwen3" else {}
    policy = made(name, how, lora=lora, **options)
    shape = shape_of(policy)
    assert shape.usual
    assert kept_bytes(shape, how, batch_of(groups())) == saved_bytes(policy, bf16=bf16)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_an_untied_head(lora):
    how = settings()
    policy = made("llama", how, lora=lora, tie_word_embeddings=False)
    assert kept_bytes(shape_of(policy), how, batch_of(groups())) == saved_bytes(policy, bf16=False)


def test_dropout_keeps_masks_and_dropped_inputs():
    how = settings(dropout=True)
    policy = made("llama", how, lora=True, dropout=0.05)
    assert kept_bytes(shape_of(policy), how, batch_of(groups())) == saved_bytes(policy, bf16=False)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_keeps_one_input_a_layer(lora, bf16):
    how = settings(bf16=bf16, checkpointing=True)
    policy = made("llama", how, lora=lora)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shape, batch = shape_of(policy), batch_of(groups())
    tables = 2 * batch.tokens * shape.head_size * (4 if not lora or not bf16 else 2)  # rope's, which the layers hold
    assert kept_bytes(shape, how, batch) - tables == saved_bytes(policy, bf16=bf16)


def test_other_architectures_are_called_rough():
    for name in ("gpt2", "gemma2", "qwen3_moe"):
        assert not shape_of(model(name, lora=False, layers=2)).usual, name


def test_older_flash_kernels_keep_repeated_keys(monkeypatch):
    """torch 2.11 takes as many key heads as query heads, so the repeated ones are kept (measured on an H200)."""
    how, shape, batch = settings(CARDS["h200"], bf16=True), shape_of(model(lora=True)), batch_of(groups())
    sizes = []
    for grouped in (True, False):
        monkeypatch.setattr("preftune.plan.settings.flash_groups_heads", lambda grouped=grouped: grouped)
        sizes.append(layer_bytes(shape, how, batch))
    assert sizes[1] - sizes[0] == 2 * 2 * batch.keys * (shape.query_width - shape.key_width)
