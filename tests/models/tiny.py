"""A tiny random Llama, and the tiny tokenizer set up for generation."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The suite's tiny tokenizer, padding on the left as generation wants it."""
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_llama(
    dtype: torch.dtype = torch.float32, *, tied: bool = True, seed: int = 0, vocabulary: int = 259
) -> LlamaForCausalLM:
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    torch.random.set_rng_state(generator_state)
    return model.eval()
