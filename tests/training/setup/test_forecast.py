"""The plan of a trainer: of model objects, of quantised bases, and of a plan that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from preftune.errors import ConfigError
from preftune.plan.devices import CARDS
from preftune.plan.settings import precision_on
from preftune.training.setup import forecast
from tests.training.dpo_runs import trainer
from tiny import tiny_model


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 3}},
    ],
)
def test_an_adapter_for_a_model_object_is_planned_as_it_is_asked_for(options, tmp_path):
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **options)
    made = trainer(tiny_model(tie_word_embeddings=False), tmp_path, peft_config=config)
    assert made.plan.shape.trainable == sum(p.numel() for p in made.model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "config", "bits", "nested"),
    [
        ({}, None, None, False),
        ({"load_in_4bit": True}, None, 4, False),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, None, 4, True),
        ({"load_in_8bit": True}, None, 8, False),
        ({}, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True), 4, True),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, None, 8, False),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}}, None, 4, True),
    ],
)
def test_bits_that_are_asked_for(options, config, bits, nested):
    assert forecast._bits(options, config) == bits
    assert forecast._nested(options, config) == nested


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_of_a_loaded_module(bits):
    model: Any = torch.nn.Linear(2, 2)
    assert forecast._bits_of_module(model) is None
    model.is_quantized, model.is_loaded_in_8bit = True, bits == 8
    assert forecast._bits_of_module(model) == bits


def test_a_plan_that_fails_is_a_note(tmp_path, monkeypatch, caplog):
    def fails(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(forecast, "plan_of_trainer", fails)
    caplog.set_level("DEBUG", "preftune")
    assert trainer(tiny_model(), tmp_path).plan is None
    assert "there is no plan of this run: a defect" in caplog.text
    with pytest.raises(ZeroDivisionError):
        trainer(tiny_model(), tmp_path, plan_only=True)


def test_a_run_that_measures_has_no_plan(tmp_path):
    with forecast.without_plan():
        assert trainer(tiny_model(), tmp_path).plan is None
    assert trainer(tiny_model(), tmp_path).plan is not None


@pytest.mark.parametrize(
    ("device", "bf16", "fp16", "expected"),
    [
        ("t4", None, False, torch.float16),
        ("t4", False, False, None),
        ("t4", None, True, torch.float16),
        ("h100", None, False, torch.bfloat16),
        ("h100", True, False, torch.bfloat16),
        ("h100", False, True, torch.float16),
        ("h100", False, False, None),
    ],
)
def test_the_precision_on_a_card_that_is_not_there(device, bf16, fp16, expected):
    found = precision_on(CARDS[device], bf16=bf16, fp16=fp16, model_dtype=torch.float32)
    assert found.autocast == expected
    assert found.grad_scaling == (expected == torch.float16)


def test_bfloat16_on_a_card_without_it_is_refused():
    with pytest.raises(ConfigError, match="t4 has no bfloat16"):
        precision_on(CARDS["t4"], bf16=True, fp16=False, model_dtype=torch.float32)
