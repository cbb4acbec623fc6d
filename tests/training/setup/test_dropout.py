"""`disable_dropout`: a policy in training mode computes what it computes in evaluation mode, whoever holds the rate."""

from __future__ import annotations

import pytest
import torch
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, PveraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import models_zoo
from logps.groups import random_groups
from preftune.logps import naive_logps, pack
from preftune.training.setup.dropout import dropout_off

MODELS = {
    "gpt2": {"model_type": "gpt2", "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "llama": {"model_type": "llama", "attention_dropout": 0.5},
    "opt": {"model_type": "opt", "dropout": 0.5, "layerdrop": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {"model_type": "falcon", "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "persimmon": {"model_type": "persimmon", "hidden_dropout": 0.5, "attention_dropout": 0.5},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 0.5},
    "phimoe": {"model_type": "phimoe", "num_local_experts": 4, "router_jitter_noise": 0.5, "input_jitter_noise": 0.0},
    "dbrx": {
        "model_type": "dbrx",
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "moe_jitter_eps": 0.5,
        },
    },
}
LAYERS = {"target_modules": ["q_proj", "down_proj"]}
ADAPTERS = {
    "lora": LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, **LAYERS),
    "loha": LoHaConfig(r=4, rank_dropout=0.5, module_dropout=0.5, init_weights=False, **LAYERS),
    "lokr": LoKrConfig(r=2, rank_dropout=0.5, module_dropout=0.5, init_weights=False, **LAYERS),
    "boft": BOFTConfig(boft_block_size=4, boft_dropout=0.5, init_weights=False, target_modules=["q_proj"]),
}


def quiet(model) -> None:
    """Fails unless training mode gives what evaluation mode gives, after having given something else."""
    batch = pack(random_groups())
    with torch.no_grad():
        model.eval()
        expected = naive_logps(model, batch)
        assert not torch.equal(naive_logps(model.train(), batch), expected), "no rate is above 0: the test says nothing"
        dropout_off(model)
        assert torch.equal(naive_logps(model, batch), expected)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_drops_anything(name: str) -> None:
    values = {**models_zoo._BASE, "experts_implementation": "eager", **MODELS[name]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    quiet(model)


def test_a_threshold_of_a_router_is_no_noise() -> None:
    """PhiMoE's `router_jitter_noise` decides in evaluation too which experts are asked."""
    values = {**models_zoo._BASE, "num_local_experts": 4, "router_jitter_noise": 0.5, "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phimoe", **values)).eval()
    batch = pack(random_groups())
    with torch.no_grad():
        expected = naive_logps(model, batch)
        dropout_off(model)
        assert torch.equal(naive_logps(model, batch), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # BOFT asks for a compiler
@pytest.mark.parametrize("name", ADAPTERS)
def test_no_adapter_drops_anything(name: str) -> None:
    torch.manual_seed(0)
    quiet(get_peft_model(models_zoo.random_model(), ADAPTERS[name]))


def test_an_adapter_that_draws_its_weights_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    adapted = get_peft_model(models_zoo.random_model(), PveraConfig(r=4, target_modules=["q_proj"]))
    with caplog.at_level("INFO", logger="preftune"):
        dropout_off(adapted)
    assert "samples its weights at random" in caplog.text
