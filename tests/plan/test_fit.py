"""What makes a training fit: every single setting that suffices, or the fewest together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from preftune.models.precision import Precision
from preftune.plan.devices import CARDS
from preftune.plan.fit import Case, fixes, with_adapter
from preftune.plan.shape import shape_of
from tests.plan.cases import model, settings, smaller, workload

FLOAT16 = Precision(torch.float16, torch.float16, True, "a test")


def case_of(how, shape=None, **options) -> Case:
    return Case.of(shape or big(lora=True), how, workload(**options))


def big(*, lora: bool):
    """A shape of 8 billion parameters; memory is arithmetic."""
    small = shape_of(model(lora=False))
    large = replace(
        small, layers=32, width=4096, heads=32, query_width=4096, key_width=1024, head_size=128, inner=14336,
        vocabulary=128256, trunk=6_980_000_000, head=525_000_000, stored=8_030_000_000, linear=6_980_000_000,
        trainable=8_030_000_000, largest_layer=218_000_000, largest_layer_trainable=218_000_000,
        root=1_050_000_000, root_trainable=1_050_000_000, largest_weight=525_000_000,
    )  # fmt: skip
    return with_adapter(large, 16) if lora else large


def test_what_fits_needs_nothing():
    assert fixes(case_of(settings(CARDS["h200"], bf16=True))) == []


def test_each_single_setting_suffices_and_the_mildest_comes_first():
    tight = smaller(CARDS["l4"], 40e9)
    found = fixes(case_of(settings(tight, bf16=True), per_step=32))
    assert found[0].flags == ("--gradient_checkpointing true",)
    names = [change.flags[0].split()[0] for change in found]
    assert "--max_tokens_per_batch" in names
    assert all(change.total <= 40e9 for change in found)


def test_the_budget_is_the_largest_that_fits():
    tight = smaller(CARDS["l4"], 30e9)
    case = case_of(settings(tight, bf16=True), per_step=32)
    (change,) = [one for one in fixes(case) if one.flags[0].startswith("--max_tokens_per_batch")]
    budget = int(change.flags[0].split()[1])
    from preftune.plan.fit import within

    assert within(case, budget).memory.fits
    assert not within(case, budget + 256).memory.fits


def test_an_adapter_of_8b_on_a_t4_needs_four_bits_and_more():
    found = fixes(case_of(settings(CARDS["t4"], bf16=True), per_step=16))
    assert found
    assert "--load_in_4bit" in found[0].flags
    assert found[0].case.memory.fits


def test_full_fine_tuning_is_sharded_or_becomes_an_adapter():
    how = settings(CARDS["h100"], bf16=True, checkpointing=True, reference="pass")
    found = fixes(case_of(how, big(lora=False)))
    flags = [change.flags for change in found]
    assert ("--use_peft",) in flags
    assert ("--load_in_4bit",) in flags
    (spread,) = [change for change in found if change.flags == ("--fsdp full_shard",)]
    assert spread.case.settings.ranks > 1
    assert spread.case.memory.fits


def test_several_ranks_are_sharded_as_they_are():
    how = settings(CARDS["h100"], bf16=True, checkpointing=True, reference="pass", gpus=8)
    found = fixes(case_of(how, big(lora=False)))
    assert found[0].flags == ("--fsdp full_shard",)
    assert found[0].case.settings.ranks == 8


@pytest.mark.parametrize("options", [{"bits": 4}, {"divisible": False}, {"precision": FLOAT16}])
@pytest.mark.parametrize("gpus", [1, 8])
def test_sharding_is_not_advised_where_the_training_refuses_it(gpus, options):
    how = settings(smaller(CARDS["h100"], 12e9), bf16=True, checkpointing=True, gpus=gpus)
    assert ("--fsdp full_shard",) in [change.flags for change in fixes(case_of(how))]
    refused = replace(how, **options)
    assert not refused.can_shard
    assert "--fsdp full_shard" not in [flag for change in fixes(case_of(refused)) for flag in change.flags]


def test_four_bits_are_not_advised_for_a_sharded_training():
    how = settings(smaller(CARDS["h100"], 20e9), bf16=True, gpus=2, fsdp=frozenset({"full_shard"}))
    found = [flag for change in fixes(case_of(how)) for flag in change.flags]
    assert found
    assert "--load_in_4bit" not in found


def test_what_four_bits_do_not_make_fit_is_sharded():
    """Weights in 4 bits cannot be sharded: the steps that end in sharding leave them out."""
    how = settings(smaller(CARDS["h100"], 5e9), bf16=True)
    (change,) = fixes(case_of(how))
    assert "--fsdp full_shard" in change.flags
    assert "--load_in_4bit" not in change.flags


def test_nothing_helps():
    assert fixes(case_of(settings(smaller(CARDS["t4"], 1e9), bf16=True))) == []


@pytest.mark.parametrize("rank", [8, 16])
def test_an_adapter_is_as_large_as_pefts(rank):
    from peft import LoraConfig, get_peft_model

    policy = model(lora=False)
    expected = with_adapter(shape_of(policy), rank)
    real = shape_of(get_peft_model(policy, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")))
    for name in ("adapter", "trainable", "narrow", "adapted_inputs", "largest_layer", "largest_layer_trainable"):
        assert getattr(expected, name) == getattr(real, name), name
