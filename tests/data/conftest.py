"""The tokenizers that the tests of this folder share."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from .tiny_bpe import CHATML, make_tokenizer


@pytest.fixture(scope="session")
def _chat() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def chat(_chat: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A chat tokenizer like SmolLM2's: eos is the end-of-turn mark, and pad is eos."""
    return copy.deepcopy(_chat)


@pytest.fixture(scope="session")
def plain() -> PreTrainedTokenizerFast:
    """A base model's tokenizer: bos in front, no chat template."""
    return make_tokenizer(bos=True, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def bare() -> PreTrainedTokenizerFast:
    """Neither bos nor a chat template is applied; eos exists."""
    return make_tokenizer(eos_token="</s>")
