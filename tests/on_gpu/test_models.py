"""Whole models on a GPU against the oracle in float64 on the CPU: values, and the gradient of every trained weight.

Error budget: no further from the oracle than the naive path in the same precision on the same GPU, times a factor for
another order of summation. A wrong mask, window or position deviates by ten times that.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

from logps.groups import random_groups
from models_zoo import random_model
from preftune.logps import make_engine, naive_logps, pack
from preftune.logps.attention import packed as attention

from .conftest import can

CUDA = torch.device("cuda", 0)
SIZES = ((4, (3, 9)), (12, (7, 2)), (60, (80, 10, 50)), (1, (1, 2)))
BUDGET = 3.0
# heads of 64, as flash kernels want them; windows of 5 lie inside the lengths
WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
MODELS = {
    "llama": {},
    "smollm3": {},
    "mistral": {"head_dim": 64},
    "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64},
    "gemma3": {"head_dim": 64, "query_pre_attn_scalar": 64},
    "gpt_oss": {"head_dim": 64},
}
KERNEL = {"gemma2": "attend", "gpt_oss": "attend"}  # varlen otherwise


def build(name, *, lora):
    model = random_model(name, **{**WIDE, **MODELS[name]})
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0.0, 0.05)
    return model.train()


def scores_and_gradients(model, score, device, autocast=None):
    batch = pack(random_groups(SIZES)).to(device)
    context = torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext()
    with context:
        scores = score(model, batch)
    (scores * torch.linspace(-1, 2, len(scores), device=device)).sum().backward()
    gradients = torch.cat([p.grad.double().cpu().flatten() for p in model.parameters() if p.requires_grad])
    return scores.detach().double().cpu(), gradients


def packed(model, batch):
    return make_engine(model, "packed")(model, batch).token_logps_T


@pytest.fixture
def calls(monkeypatch):
    """Which kernel attention went through."""
    seen = []
    for module, name in ((attention.cuda, "varlen"), (attention.flex, "attend"), (attention, "_by_segment")):
        inner = getattr(module, name)

        def counted(*args, _name=name, _inner=inner, **kwargs):
            seen.append(_name)
            return _inner(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return seen


PRECISIONS = {
    "bf16 weights": (torch.bfloat16, None),
    "fp16 weights": (torch.float16, None),
    "fp32": (torch.float32, None),
    "bf16 autocast": (torch.float32, torch.bfloat16),
    "fp16 autocast": (torch.float32, torch.float16),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_on_a_gpu_equals_the_oracle(calls, name, precision, lora, checkpointing):
    dtype, autocast = PRECISIONS[precision]
    if torch.bfloat16 in (dtype, autocast) and not can((8, 0)):
        pytest.skip("this card has no bfloat16")
    reference = build(name, lora=lora).double()
    reference.set_attn_implementation("eager")
    exact = scores_and_gradients(reference, naive_logps, torch.device("cpu"))
    rough_model = build(name, lora=lora).to(CUDA, dtype)
    rough_model.set_attn_implementation("eager")
    rough = scores_and_gradients(rough_model, naive_logps, CUDA, autocast)

    model = build(name, lora=lora).to(CUDA, dtype)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()
    with torch.no_grad(), torch.autocast(CUDA.type, autocast) if autocast else contextlib.nullcontext():
        packed(model, pack(random_groups(SIZES)).to(CUDA))  # FlexAttention tries its kernel once, through `attend`
    calls.clear()
    actual = scores_and_gradients(model, packed, CUDA, autocast)

    half = dtype != torch.float32 or autocast is not None
    expected = KERNEL.get(name, "varlen") if half and can((8, 0)) else "_by_segment"
    assert set(calls) == {expected}
    layers = model.config.num_hidden_layers
    assert len(calls) == layers * (2 if checkpointing else 1)
    floor = 1e-5 if not half else 1e-3  # norms and rotary are float32 in transformers, whatever the model's dtype
    for a, r, e in zip(actual, rough, exact, strict=True):
        error, baseline = ((t - e).norm() / e.norm() for t in (a, r))
        assert error <= BUDGET * baseline + floor, (float(error), float(baseline))


def test_policy_and_reference_give_the_same_bits():
    """Adapters off and freshly initialised adapters on go through the same kernels: margins are exactly zero."""
    from peft import LoraConfig, get_peft_model

    dtype = torch.bfloat16 if can((8, 0)) else torch.float16
    model = get_peft_model(random_model("llama", **WIDE), LoraConfig(r=4, target_modules="all-linear")).to(CUDA, dtype)
    engine, batch = make_engine(model, "packed"), pack(random_groups(SIZES)).to(CUDA)
    with torch.no_grad():
        policy = engine(model, batch).token_logps_T
        with model.disable_adapter():
            reference = engine(model, batch).token_logps_T
    assert torch.equal(policy, reference)
