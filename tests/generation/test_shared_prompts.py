"""Rows that share a prompt compute it once, draw what they drew before, and leave the batch when they have ended."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from models_zoo import CONFIGS, random_model
from preftune.generation import early_exit
from preftune.generation.early_exit import ROUND
from preftune.generation.generate import generate_batch, generating, generation_config
from tiny import tiny_tokenizer

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16]]
ROWS = [ids for ids in PROMPTS for _ in range(4)]
NEW = ROUND + 6


def sharp(name: str) -> Any:
    """A model whose likeliest tokens stand out, so that rounding does not decide a draw."""
    model = random_model(name).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
    return model


def drawn(model: Any, rows: list[list[int]] = ROWS, **options: Any) -> list[list[int]]:
    settings = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.95, **options}
    config = generation_config(model, tiny_tokenizer(), **settings)
    config.eos_token_id = [2, 30, 31, 32, 33]  # so that some rows end early
    with generating(model, None, 0):
        found = generate_batch(model, rows, config, range(40, 40 + len(rows)) if config.do_sample else None)
    return [row[: next((at + 1 for at, t in enumerate(row) if t in config.eos_token_id), NEW)] for row in found]


class Computed:
    """Tokens of each forward pass."""

    def __init__(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        forward = model.forward

        @wraps(forward)
        def counting(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self.shapes.append(tuple(ids.shape))
            return forward(*args, **kwargs)

        patch.setattr(model, "forward", counting)


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_draws_are_those_of_rows_computed_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp(name)
    together = drawn(model)
    monkeypatch.setattr(early_exit, "shared_prompts", lambda *_: None)
    assert together == drawn(model)


def test_a_prompt_is_computed_once_and_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp("llama")
    expected = drawn(model)
    with monkeypatch.context() as patch:
        seen = Computed(model, patch)
        assert drawn(model) == expected
    width = max(map(len, PROMPTS))
    assert seen.shapes[0] == (3, width - 1)
    assert seen.shapes[1] == (12, 1)
    going = sum(len(row) > ROUND for row in expected)
    assert 0 < going < 12
    assert seen.shapes[1 + ROUND] == (going, 1)


def test_different_prompts_are_computed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp("llama")
    with monkeypatch.context() as patch:
        seen = Computed(model, patch)
        drawn(model, PROMPTS)
    assert seen.shapes[0] == (3, 7)


@pytest.mark.parametrize(
    ("adapter", "shared"),
    [
        (LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"), True),
        (PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), False),
        (LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, alora_invocation_tokens=[9, 10],
                    task_type="CAUSAL_LM"), False),
    ],
    ids=["lora", "prefix", "alora"],
)  # fmt: skip
def test_adapters_and_what_needs_the_whole_prompt(adapter: Any, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_peft_model(sharp("llama"), adapter).eval()
    with monkeypatch.context() as patch:
        seen = Computed(model.get_base_model(), patch)
        together = drawn(model)
    assert (seen.shapes[0][0] == 3) is shared
    assert max(map(len, together)) > ROUND  # prefix tuning ended there in an error: a round began without its prefix
    monkeypatch.setattr(early_exit, "shared_prompts", lambda *_: None)
    assert together == drawn(model)
    greedy = drawn(model, do_sample=False, temperature=None, top_k=None, top_p=None)
    monkeypatch.setattr(early_exit, "ROUND", NEW)
    assert greedy == drawn(model, do_sample=False, temperature=None, top_k=None, top_p=None)
