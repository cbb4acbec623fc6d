"""The ids of texts that share a prompt are those of the whole texts, for every kind of tokeniser, with less work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.data.tokens.shared_prefix import PromptOnce

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ?.\n▁"
MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("Ġ", "the"), ("Ġ", "and"), ("▁", "the"), ("e", "r")]


def bpe(pre_tokenizer: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet(), *LETTERS})
    words = [*alphabet, *(left + right for left, right in MERGES)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, MERGES, unk_token="?"))
    made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def byte_level() -> Tokenizer:
    made = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.decoder = decoders.ByteLevel()
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "bytes, a space put in front": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a mark before the first word": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "a mark before every piece": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "normalised": lambda: bpe(
        pre_tokenizers.Whitespace(), normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    ),
    "prepended": lambda: bpe(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
}


def tokenizer_of(kind: str, **mark: bool) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), eos_token="<|end|>")
    made.add_special_tokens({"additional_special_tokens": [AddedToken("<|start|>", normalized=False, **mark)]})
    return made


class Counting:
    """Tokenises, and counts the letters that it was given."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.letters = tokenizer, 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        self.letters += sum(map(len, texts))
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []


TEXT = st.lists(
    st.sampled_from(["the and", " the", "other\n", "\n", "  ", "A", "?", "<|start|>", "<|end|>", "<|end", "|>", "é"]),
    max_size=6,
).map("".join)


@pytest.mark.sample(8)
@pytest.mark.parametrize("mark", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_texts(kind: str, mark: dict[str, bool]) -> None:
    tokenize = Counting(tokenizer_of(kind, **mark))
    once = PromptOnce(tokenize.tokenizer, tokenize)

    @given(st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=3))
    def same(parts: list[tuple[str, str, str, str]]) -> None:
        texts = [
            [f"{head}<|start|>{lead}", f"{head}<|start|>{lead}{first}", f"{head}<|start|>{second}", second]
            for head, lead, first, second in parts
        ]
        assert once(texts) == [tokenize(list(of_prompt)) for of_prompt in texts]

    same()


def test_the_prompt_is_tokenised_once() -> None:
    tokenize = Counting(tokenizer_of("bytes"))
    once = PromptOnce(tokenize.tokenizer, tokenize)
    prompt = "<|start|>user\n" + "the and " * 100 + "<|end|>\n<|start|>assistant\n"
    once([[prompt, prompt + "first", prompt + "second"]])  # looked at, so tokenised whole too
    tokenize.letters = 0
    once([[prompt, prompt + "first", prompt + "second"]])
    assert tokenize.letters < len(prompt) + 80


def test_a_tokeniser_for_which_it_does_not_hold_gets_whole_texts() -> None:
    tokenizer = tokenizer_of("bytes")

    def looks_back(texts: list[str]) -> list[list[int]]:
        plain = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [[*ids[:-1], len(ids)] if len(ids) > 9 else ids for ids in plain]

    once = PromptOnce(tokenizer, looks_back)
    prompt = "the<|end|> the and the<|start|> "
    texts = [[prompt, prompt + "the other the other the", prompt + "and"]] * 2
    for _ in range(2):
        assert once(texts) == [looks_back(list(of_prompt)) for of_prompt in texts]


def test_without_special_tokens_nothing_changes() -> None:
    tokenize = Counting(tokenizer_of("bytes"))
    once = PromptOnce(tokenize.tokenizer, tokenize)
    assert once([["the", "the and", "the other"]]) == [tokenize(["the", "the and", "the other"])]
    assert once([]) == []
