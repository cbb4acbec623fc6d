"""Sampling from a geometric mixture, beside a computation of every token from whole sequences without a cache."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from preftune.generation.generate import generate_batch, generating, generation_config
from preftune.generation.seeded_sampling import GeometricMixture
from tiny import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
SEEDS = [3, 4, 5]


def drawn(model: Any, other: Any, weight: float, *, temperature: float = 1.0, new: int = 7) -> list[list[int]]:
    @contextmanager
    def opened() -> Any:
        yield other

    config = generation_config(
        model, tiny_tokenizer(), max_new_tokens=new, do_sample=True, temperature=temperature, top_k=0, top_p=1.0
    )
    processor = partial(GeometricMixture, opened, weight=weight)
    with generating(model, None, 0):
        return generate_batch(model, PROMPTS, config, SEEDS, processor=processor)


def token_by_token(model: Any, other: Any, weight: float, temperature: float, new: int) -> list[list[int]]:
    """p^(1 - weight) q^weight / Z in float64, of one sequence at a time, drawn by inversion."""
    found = []
    for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
        uniforms, ids = np.random.default_rng(seed).random(new), list(prompt)
        for uniform in uniforms:
            with torch.no_grad():
                p, q = (m.eval()(torch.tensor([ids])).logits[0, -1].double().softmax(-1) for m in (model, other))
            mixed = (p ** ((1 - weight) / temperature)) * (q ** (weight / temperature))
            reached = (mixed / mixed.sum()).cumsum(-1)
            ids.append(int((reached <= uniform * reached[-1]).sum()))
        found.append(ids[len(prompt) :])
    return found


def until_end(answer: list[int]) -> list[int]:
    end = tiny_tokenizer().eos_token_id
    return answer[: answer.index(end) + 1] if end in answer else answer


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_tokens_are_those_of_the_mixture(weight, temperature, name):
    model, other = (tiny_model(name, seed=seed) for seed in (0, 1))
    with torch.no_grad():  # a tiny random model is almost uniform, and two of them are alike
        for one in (model, other):
            one.get_output_embeddings().weight.mul_(20 if name == "llama" else 4)  # tied, it would repeat its input
    found = drawn(model, other, weight, temperature=temperature)
    expected = token_by_token(model, other, weight, temperature, 7)
    assert [until_end(answer) for answer in found] == [until_end(answer) for answer in expected]
    if weight == 0.5:
        assert expected != token_by_token(model, other, 0.0, temperature, 7)
        assert expected != token_by_token(model, other, 1.0, temperature, 7)
