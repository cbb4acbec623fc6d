"""Sampling from a geometric mixture, beside a computation of every token from whole sequences without a cache."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from preftune.generation.generate import generate_batch, generating, generation_config
from preftune.generation.seeded_sampling import GeometricMixture
from tests.training.dpo_runs import nudge
from tiny import tiny_model, tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
SEEDS = [3, 4, 5]


VIRTUAL = {
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


def with_virtual_tokens(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model(seed=seed), VIRTUAL[kind])
    nudge(model, 0.5)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


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


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # of PEFT
@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_stand_once_in_front_of_each_text(kind):
    """PEFT puts them in front of what is new after the cache too, and in front of the padding."""
    model, other = (with_virtual_tokens(kind, seed) for seed in (0, 1))
    expected = token_by_token(model, other, 0.5, 1.0, 7)
    assert [until_end(answer) for answer in drawn(model, other, 0.5)] == [until_end(answer) for answer in expected]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # of PEFT
@pytest.mark.parametrize("kind", VIRTUAL)
def test_an_answer_with_virtual_tokens_does_not_depend_on_the_other_prompts(kind):
    model = with_virtual_tokens(kind, 0)
    config = generation_config(model, tiny_tokenizer(), max_new_tokens=8, do_sample=False)
    with generating(model, None, 0):
        together = generate_batch(model, PROMPTS, config, None)
        alone = [generate_batch(model, [prompt], config, None)[0] for prompt in PROMPTS]
    assert list(map(until_end, together)) == list(map(until_end, alone))
