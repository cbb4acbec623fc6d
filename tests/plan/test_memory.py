"""The lines of a rank's memory: they add up, sharding divides them, and the one measurement on a card is met."""

from __future__ import annotations

import re
from pathlib import Path

import gpu
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from preftune.models.precision import Precision
from preftune.plan.devices import CARDS
from preftune.plan.memory import memory_of
from preftune.plan.shape import shape_of
from preftune.plan.workload import MicroBatch, RowLengths
from tests.plan.cases import batch_of, groups, model, settings


@pytest.mark.parametrize("lora", [True, False])
def test_the_lines_of_what_is_trained(lora):
    policy = model(lora=lora)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    memory = memory_of(shape_of(policy), settings(), batch_of(groups()), micro_batches=1)
    assert memory.of("gradients") == 4 * trained
    assert memory.of("optimiser") == 8 * trained
    assert memory.of("adapter") == 4 * trained * lora
    assert memory.of("weights") == 4 * sum(p.numel() for p in policy.parameters()) - memory.of("adapter")


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw_torch_fused", 8), ("adamw_8bit", 2.1), ("adamw_bnb_8bit", 2.1), ("paged_adamw_8bit", 2.1),
        ("adamw_torch_4bit", 1.1), ("adafactor", 0.1), ("sgd", 0), ("lion_32bit", 4), ("lion_8bit", 2.1),
        ("paged_lion_8bit", 2.1), ("rmsprop", 4), ("rmsprop_bnb_8bit", 2.1), ("adagrad", 4), ("another", 8),
    ],
)  # fmt: skip
def test_the_state_of_an_optimiser(optimizer, expected):
    assert settings(optimizer=optimizer).state_bytes == expected


def test_gradients_wait_for_further_micro_batches():
    shape, how, batch = shape_of(model(lora=False)), settings(), batch_of(groups() * 20)
    one, two = (memory_of(shape, how, batch, micro_batches=count).total for count in (1, 2))
    assert two - one == pytest.approx(4 * (shape.trainable - shape.head))


def test_two_ranks_hold_half_each():
    """FSDP2 on two devices: half of weights, gradients and optimiser; hybrid shards within a machine only."""
    shape, batch = shape_of(model(lora=False)), batch_of(groups())
    card = CARDS["h100"]
    whole = memory_of(shape, settings(card, bf16=True), batch, micro_batches=1)
    half = memory_of(shape, settings(card, bf16=True, gpus=2, fsdp=frozenset({"full_shard"})), batch, micro_batches=1)
    for line in ("weights", "gradients", "optimiser"):
        assert half.of(line) == whole.of(line) / 2
    assert half.of("gathered") == (4 + 4) * (2 * shape.largest_layer + shape.root)  # float32, and their gradients
    assert whole.of("gathered") == 0
    hybrid = settings(card, bf16=True, gpus=2, nodes=4, fsdp=frozenset({"hybrid_shard"}))
    assert memory_of(shape, hybrid, batch, micro_batches=1).of("weights") == whole.of("weights") / 2


@pytest.mark.parametrize(("word", "layers"), [("full_shard", 2), ("shard_grad_op", 3)])
def test_layers_are_gathered_in_the_dtype_in_which_they_are_stored(word, layers):
    """The frozen base in bfloat16, the adapter in float32, both layers' gradients of it."""
    policy = model(lora=True)
    first = dict(policy.base_model.model.model.layers[0].named_parameters())
    adapter = sum(p.numel() for name, p in first.items() if "lora_" in name)
    base = sum(p.numel() for p in first.values()) - adapter
    outside = sum(p.numel() for name, p in policy.named_parameters() if ".layers." not in name)
    how = settings(CARDS["h100"], bf16=True, gpus=2, fsdp=frozenset({word}))
    memory = memory_of(shape_of(policy), how, batch_of(groups()), micro_batches=1)
    assert memory.of("gathered") == 2 * (layers * base + outside) + 4 * layers * adapter + 4 * 2 * adapter


def test_ddp_holds_everything_on_every_rank():
    shape, batch, card = shape_of(model(lora=False)), batch_of(groups()), CARDS["h100"]
    one, eight = (
        memory_of(shape, settings(card, bf16=True, gpus=gpus), batch, micro_batches=1).total for gpus in (1, 8)
    )
    assert one == eight


def test_offloading_moves_to_main_memory():
    shape, batch, card = shape_of(model(lora=False)), batch_of(groups()), CARDS["h100"]
    how = settings(card, bf16=True, gpus=2, fsdp=frozenset({"full_shard", "offload"}))
    memory = memory_of(shape, how, batch, micro_batches=1)
    assert memory.of("weights") == memory.of("optimiser") == 0
    assert memory.host == pytest.approx(16 * shape.trainable / 2)


def test_four_bits_pack_the_linear_layers_alone():
    shape, batch = shape_of(model(lora=True)), batch_of(groups())
    plain, packed, nested = (
        memory_of(shape, settings(bf16=True, bits=bits, nested=double), batch, micro_batches=1).of("weights")
        for bits, double in ((None, False), (4, False), (4, True))
    )
    assert plain - packed == pytest.approx(shape.linear * (2 - 0.5625))
    assert packed - nested == pytest.approx(shape.linear * (1 / 16 - 1 / 64 - 4 / (64 * 256)))


def test_a_frozen_copy_is_a_line():
    shape, batch = shape_of(model(lora=False)), batch_of(groups())
    memory = memory_of(shape, settings(reference="copy"), batch, micro_batches=1)
    assert memory.of("reference") == 4 * shape.trainable


@pytest.mark.parametrize(("checkpointing", "measured"), [(False, 48.81e9), (True, 10.67e9)])
def test_the_measurement_on_a_card(checkpointing, measured, monkeypatch):
    """SmolLM3-3B's shape, LoRA r=16, bfloat16, 16 pairs of UltraFeedback's lengths, torch 2.11: what the allocator of
    an H200 gave at most, for the same rows (docs/notes.md).
    """
    page = " ".join((Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8").split())
    (found,) = re.findall(r"([\d.]+) GB for ([\d.]+) without checkpointing, ([\d.]+) for ([\d.]+) with it", page)
    figures = {False: map(float, found[:2]), True: map(float, found[2:])}
    monkeypatch.setattr("preftune.plan.settings.flash_groups_heads", lambda: False)
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(gpu.config_of("smollm3-3b"))
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    shape = shape_of(get_peft_model(policy, config, low_cpu_mem_usage=True))
    rows = [RowLengths(p, (c, r), c + r, 2 * p + c + r) for p, c, r in gpu.row_lengths("ultrafeedback", 16 * 11)]
    largest = max((MicroBatch.of(rows[at : at + 16]) for at in range(0, 176, 16)), key=lambda batch: batch.tokens)
    how = settings(
        CARDS["h200"],
        precision=Precision(torch.bfloat16, torch.bfloat16, False, "H200"),
        checkpointing=checkpointing,
    )
    memory = memory_of(shape, how, largest, micro_batches=1)
    forecast = memory.total - memory.of("system")
    assert forecast == pytest.approx(measured, rel=0.05)
    assert (forecast, measured) == pytest.approx([1e9 * gb for gb in figures[checkpointing]], abs=0.05e9)


def test_a_checkpoint_that_is_stored_in_four_bits():
    policy = model(lora=False)
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for config, bits, nested in (
        (stored, 4, False),
        ({**stored, "bnb_4bit_use_double_quant": True}, 4, True),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True), 4, True),
        ({"quant_method": "gptq", "bits": 8}, 8, False),
    ):
        policy.config.quantization_config = config
        shape = shape_of(policy)
        assert (shape.bits, shape.nested) == (bits, nested)
