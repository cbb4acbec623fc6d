"""Small random models of many architectures, from transformers' own classes. Widths are a few dozen."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

VOCABULARY = 128
_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 5,
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 8,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gpt2": {"model_type": "gpt2", "n_positions": 256},
    "phi3": {"model_type": "phi3"},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "experts_implementation": "eager",
    },
    "granite": {"model_type": "granite", "logits_scaling": 3.0},
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 8,
        "sliding_window": 5,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "experts_implementation": "eager",
    },
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "falcon_h1": {
        "model_type": "falcon_h1",
        "mamba_d_state": 8,
        "mamba_n_heads": 4,
        "mamba_d_ssm": 32,
        "mamba_d_head": 8,
    },
    "stablelm": {"model_type": "stablelm"},
    "codegen": {"model_type": "codegen", "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "sliding_window": 5,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "llama4": {
        "model_type": "llama4_text",
        "head_dim": 8,
        "num_local_experts": 2,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 32,
    },
    "mamba": {"model_type": "mamba", "state_size": 4, "conv_kernel": 3},
    "bloom": {"model_type": "bloom"},
    "phi3_longrope": {
        "model_type": "phi3",
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 64,
        },
    },
}


def random_model(
    name: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0, **overrides: Any
) -> Any:
    """A random model; `scale` widens its weights, so that a wrong neighbour shows in the scores."""
    set_seed(seed)
    values = {**_BASE, **CONFIGS[name], **overrides}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, scale * parameter.shape[-1] ** -0.5)
            elif "norm" not in key and "ln_" not in key:
                parameter.normal_(0.0, 0.2 * scale)
    return model.to(dtype).eval()
