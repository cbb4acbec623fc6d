"""A tiny tokenizer with a chat template, tiny models that fit it, and made-up rows. Nothing is downloaded."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models_zoo import random_model

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 264


@functools.cache
def _backend() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend.to_str()


def tiny_tokenizer(*, chat: bool = True, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte; bos=1, eos=2 (`<|im_end|>`), pad=0 or, as every tutorial sets it, eos."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad_is_eos else "<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(name: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> Any:
    """A random model whose vocabulary is the tiny tokenizer's."""
    return random_model(name, dtype=dtype, seed=seed, vocab_size=VOCABULARY, max_position_embeddings=1024, **overrides)


def save_tiny(folder: Path, **options: Any) -> str:
    """A folder as `from_pretrained` wants it."""
    tiny_model(**options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


_THINGS = "apple brick cloud drum eagle flute globe honey ink jar kite lamp moon nest oak pearl".split()


def rows(count: int = 16, *, start: int = 0) -> list[dict[str, str]]:
    """Preferences with a rule a model can learn: the short answer is better than the long one."""
    made = []
    for i in range(start, start + count):
        a, b = _THINGS[i % 16], _THINGS[(i * 7 + i // 16) % 16]
        made.append(
            {"prompt": f"{a} {i}?", "chosen": f"{b} {i % 9}", "rejected": f"well, {a} or {b}, who knows {i % 7}"}
        )
    return made


def chat_rows(count: int = 16, *, start: int = 0) -> list[dict[str, list[dict[str, str]]]]:
    """The same as conversations."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows(count, start=start)
    ]
