"""Whatever attribute of a module changes a score, its change changes the fingerprint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from models_zoo import CONFIGS, random_model
from preftune.reference import fingerprint
from preftune.training.setup.unsaved import warn_of_unsaved

HALF = {"target_modules": ["q_proj", "v_proj"]}
PROMPT = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "dora": peft.LoraConfig(r=2, use_dora=True, **HALF),
    "lora_and_tokens": peft.LoraConfig(r=2, trainable_token_indices=[3], modules_to_save=["lm_head"], **HALF),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=100, **HALF),
    "oft": peft.OFTConfig(r=2, oft_block_size=0, **HALF),
    "vera": peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "randlora": peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
    "wave": peft.WaveFTConfig(n_frequency=4, **HALF),
    "hra": peft.HRAConfig(r=2, **HALF),
    "vblora": peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=8, topk=2, **HALF),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "miss": peft.MissConfig(r=2, **HALF),
    "prompt": peft.PromptTuningConfig(**PROMPT),
    "p_tuning": peft.PromptEncoderConfig(**PROMPT),
}
NOT_SCORED = frozenset({"training", "max_norm", "coft"})
"""Dropout is off when scores are computed; a maximal norm and OFT's constraint change the weights themselves."""


def other(value: Any) -> Any:
    """Another value of the same kind; the value itself for kinds that are not tried."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, Tensor) and value.dim():
        return value.flip(0)
    return value * 1.5 + 0.1 if isinstance(value, float) else value


def places(model: nn.Module) -> Iterator[tuple[str, dict[Any, Any], Any]]:
    """Each attribute of the modules, in the dict that holds it, without those of the second layer."""
    for name, module in model.named_modules():
        if ".1." in f"{name}.":
            continue
        for key, value in list(vars(module).items()):
            if key not in NOT_SCORED:
                yield f"{name}.{key}", vars(module), key
            if isinstance(value, dict) and not key.startswith("_"):
                yield from ((f"{name}.{key}.{at}", value, at) for at in list(value))


def logits(model: nn.Module) -> Tensor | None:
    """None where the model cannot compute."""
    try:
        with torch.no_grad():
            found: Tensor = model(input_ids=torch.arange(3, 15)[None]).logits
        return found
    except Exception:
        return None


def missed(model: nn.Module) -> tuple[list[str], int]:
    """Attributes whose change changes the logits and not the fingerprint; how many changed the logits."""
    expected, before = logits(model), fingerprint(model, adapters=True)
    assert expected is not None
    found, changing = [], 0
    for name, holder, key in places(model):
        value = holder[key]
        holder[key] = other(value)
        if holder[key] is not value:
            seen = logits(model)
            if seen is not None and not torch.equal(seen, expected):
                changing += 1
                found += [name] if fingerprint(model, adapters=True) == before else []
        holder[key] = value
    assert torch.equal(logits(model), expected), "an attribute changed the weights"
    return found, changing


@pytest.mark.sample("llama", "gpt2", "stablelm", "qwen3_moe")
@pytest.mark.parametrize("name", CONFIGS)
def test_no_attribute_of_a_module_changes_scores_under_one_fingerprint(name):
    found, changing = missed(random_model(name))
    assert not found
    assert changing > 2


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.sample("dora", "wave", "norms", "prompt")
@pytest.mark.parametrize("name", ADAPTERS)
def test_no_attribute_of_an_adapter_changes_scores_under_one_fingerprint(name):
    model = get_peft_model(random_model(), ADAPTERS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    found, changing = missed(model)
    assert not found
    assert changing > 2


def norm_of_torch(model: Any) -> None:
    norm = model.model.norm
    model.model.norm = torch.nn.RMSNorm(32, eps=norm.variance_epsilon)
    model.model.norm.weight = norm.weight


def other_function(model: Any) -> None:
    model.model.layers[0].mlp.act_fn.act = torch.nn.functional.relu


def numpy_scale(model: Any) -> None:
    model.model.layers[0].self_attn.scaling = np.float32(0.3)


def tensor_scale(model: Any) -> None:
    model.model.layers[0].self_attn.scaling = torch.tensor(0.3)


def other_class(model: Any) -> None:
    model.transformer.h[0].mlp.gelu_impl = torch.nn.ReLU()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", norm_of_torch),
        ("llama", numpy_scale),
        ("llama", tensor_scale),
        ("llama", other_function),
        ("bloom", other_class),
    ],
)
def test_classes_functions_and_tensors_in_modules_count(name, change):
    model = random_model(name, **({"hidden_act": "gelu"} if change is other_function else {}))
    before = fingerprint(model, adapters=True)
    change(model)
    assert fingerprint(model, adapters=True) != before


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", CONFIGS)
def test_training_and_checkpointing_leave_the_fingerprint(name):
    model = random_model(name)
    before = fingerprint(model, adapters=True)
    model.train()
    model.config.use_cache = False
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(3, 100, (2, 80))
    model(input_ids=ids, labels=ids).loss.backward()
    assert fingerprint(model, adapters=True) == before


def test_a_switch_that_no_file_holds_is_reported(caplog):
    model = random_model("stablelm")
    warn_of_unsaved(model, revision=None, trust_remote_code=False)
    assert not caplog.records
    model.model.layers[0].use_parallel_residual = True
    warn_of_unsaved(model, revision=None, trust_remote_code=False)
    assert "model.layers.0.use_parallel_residual is True, not False" in caplog.text
