"""The tutorial's "expected scalar type BFloat16 but found Float"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from preftune import DPOTrainer, load_model
from preftune.errors import ConfigError
from tiny import rows, save_tiny, tiny_model

from .common_runs import LN2, first_loss, lora, make


def half_model() -> Any:
    return tiny_model(dtype=torch.bfloat16)


def adapter_in_another_dtype(base: torch.dtype, adapter: torch.dtype) -> Any:
    model = get_peft_model(tiny_model(dtype=base), lora())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    return model


def norms_in_float32() -> Any:
    model = half_model()
    for name, module in model.named_modules():
        if "norm" in name:
            module.float()
    return model


def head_in_float32() -> Any:
    model = half_model()
    model.lm_head.float()
    return model


def every_second_layer() -> Any:
    model = half_model()
    model.model.layers[1].float()
    return model


def trained_head() -> Any:
    return get_peft_model(half_model(), lora(modules_to_save=["lm_head"]))


MIXTURES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "bf16 model, fp32 adapter": (lambda: adapter_in_another_dtype(torch.bfloat16, torch.float32), {}),
    "fp32 model, bf16 adapter": (lambda: adapter_in_another_dtype(torch.float32, torch.bfloat16), {}),
    "bf16 model, fp16 adapter": (lambda: adapter_in_another_dtype(torch.bfloat16, torch.float16), {}),
    "bf16 model, fp32 norms": (norms_in_float32, {}),
    "bf16 model, fp32 norms, LoRA": (norms_in_float32, {"peft_config": lora()}),
    "bf16 model, fp32 head": (head_in_float32, {"peft_config": lora()}),
    "bf16 model, one fp32 layer": (every_second_layer, {"peft_config": lora()}),
    "bf16 model, head trained": (trained_head, {}),
    "fp16 weights on a CPU": (lambda: tiny_model(dtype=torch.float16), {"peft_config": lora()}),
    "fp16 weights on a CPU, full": (lambda: tiny_model(dtype=torch.float16), {}),
    "fp16 weights, bf16=True": (lambda: tiny_model(dtype=torch.float16), {"peft_config": lora(), "bf16": True}),
    "fp32 model, bf16=True": (tiny_model, {"peft_config": lora(), "bf16": True}),
    "fp32 model, bf16=True, full": (tiny_model, {"bf16": True}),
    "bf16 model, bf16=False": (half_model, {"peft_config": lora(), "bf16": False}),
    "bf16 model, full": (half_model, {}),
}


def check_step(trainer: DPOTrainer) -> None:
    """Policy and reference are the same to the last bit, whatever was mixed, and what trains is float32 and moves."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in before.values()} == {torch.float32}
    assert first_loss(trainer) == pytest.approx(LN2, abs=1e-5)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.sample(4)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_of_dtypes_trains(mixture, tmp_path):
    build, options = MIXTURES[mixture]
    check_step(make(build(), tmp_path, eval_dataset=rows(2, start=8), **options))


@pytest.mark.parametrize("mixture", ["bf16 model, fp16 adapter", "bf16 model, fp32 norms, LoRA", "bf16 model, full"])
def test_and_recomputes_it_in_the_same_dtypes(mixture, tmp_path):
    build, options = MIXTURES[mixture]
    check_step(make(build(), tmp_path, gradient_checkpointing=True, eval_dataset=rows(2, start=8), **options))


@pytest.mark.parametrize("mixture", ["bf16 model, fp32 norms", "bf16 model, fp32 head", "bf16 model, one fp32 layer"])
def test_without_preftune_the_mixture_fails(mixture):
    build, _ = MIXTURES[mixture]
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        build()(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("stored", "bf16"),
    [
        (torch.float32, None),
        (torch.float32, True),
        (torch.bfloat16, None),
        (torch.bfloat16, False),
        (torch.float16, None),
        (torch.float16, True),
    ],
    ids=str,
)
def test_a_4_bit_model_trains_whatever_else_it_is_stored_in(stored, bf16, tmp_path):
    folder = save_tiny(tmp_path / "model", hidden_size=64, dtype=stored)
    options = {"peft_config": lora(), "eval_dataset": rows(2, start=8), "bf16": bf16}
    check_step(make(load_model(folder, load_in_4bit=True), tmp_path / "run", **options))


@pytest.mark.parametrize("compute", [torch.float32, torch.float16], ids=str)
def test_a_4_bit_model_trains_whatever_its_user_set_it_to_compute_in(compute, tmp_path):
    folder = save_tiny(tmp_path / "model", hidden_size=64)
    quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantisation, dtype=torch.bfloat16)
    model = get_peft_model(model, lora(), autocast_adapter_dtype=False)
    check_step(make(model, tmp_path / "run", eval_dataset=rows(2, start=8)))


def test_a_reference_in_another_dtype_than_the_policy(tmp_path):
    rounded = tiny_model(dtype=torch.bfloat16)
    policy = tiny_model(dtype=torch.bfloat16).float()  # the same numbers, stored otherwise
    check_step(make(policy, tmp_path, ref_model=rounded, eval_dataset=rows(2, start=8)))


def test_fp16_on_a_cpu_is_refused_with_what_works_there(tmp_path):
    with pytest.raises(ConfigError, match="bf16=True, or leave both unset"):
        make(tiny_model(), tmp_path, fp16=True, use_cpu=True)
    assert first_loss(make(tiny_model(), tmp_path, bf16=True, use_cpu=True)) == pytest.approx(LN2, abs=1e-5)
    assert first_loss(make(tiny_model(), tmp_path, use_cpu=True)) == pytest.approx(LN2, abs=1e-5)
