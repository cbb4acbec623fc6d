"""Rows that have ended leave the batch; what the others say does not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from preftune.generation import early_exit as rounds
from preftune.generation.early_exit import ROUND, generate_in_rounds, serves
from preftune.generation.generate import generate, generation_config
from preftune.generation.shared_prompts import can_leave
from tiny import tiny_model, tiny_tokenizer

NEW = 3 * ROUND - 5
OTHERS = {
    "num_beams": 3,
    "do_sample": True,
    "begin_suppress_tokens": [3],
    "max_time": 1.0,
    "guidance_scale": 1.5,
    "forced_eos_token_id": 2,  # at the last token, which is not a round's
    "encoder_no_repeat_ngram_size": 2,
}


def batch(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    width = 9
    ids = torch.randint(5, 60, (rows, width), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : row % 4] = 0
        ids[row, : row % 4] = 0
    return ids, mask


def at_once(model: Any, config: Any, ends: set[int]) -> list[list[int]]:
    ids, mask = batch()
    whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()
    stops = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in whole]
    return [row[:stop] for row, stop in zip(whole, stops, strict=True)]


def frequent_ends(model: Any) -> tuple[Any, set[int]]:
    """A configuration under which some rows end early and some never."""
    config = generation_config(model, tiny_tokenizer(), max_new_tokens=NEW)
    config.eos_token_id = None
    ids, mask = batch()
    free = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
    ends = {int(free[0, 3]), int(free[2, ROUND + 2])}
    config.eos_token_id = sorted(ends)
    return config, ends


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_tokens_are_those_of_one_piece_and_ended_rows_are_not_computed(name, monkeypatch):
    model = tiny_model(name).eval()
    config, ends = frequent_ends(model)
    expected = at_once(model, config, ends)
    lengths = {len(row) for row in expected}
    assert min(lengths) <= ROUND
    computed = []
    forward = type(model).forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(kwargs["input_ids"].shape[0])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counting)
    assert generate_in_rounds(model, *batch(), config, ends=ends) == expected
    assert computed[:ROUND] == [6] * ROUND
    if max(lengths) > ROUND:
        going = sum(len(row) > ROUND for row in expected)
        assert computed[ROUND] == going < 6
    monkeypatch.undo()
    assert config.max_new_tokens == NEW


@pytest.mark.parametrize("name", ["mamba", "lfm2", "falcon_h1", "gpt2", "llama4"])
def test_a_model_with_states_of_another_kind_says_the_same_too(name):
    model = tiny_model(name).eval()
    config, ends = frequent_ends(model)
    assert generate_in_rounds(model, *batch(), config, ends=ends) == at_once(model, config, ends)


def test_only_caches_of_keys_and_values_can_be_left():
    class Other(DynamicCache):
        pass

    assert can_leave(DynamicCache())
    assert not can_leave(Other())
    assert not can_leave(None)


def test_what_counts_from_the_prompt_is_generated_in_one_piece():
    model = tiny_model()
    config = generation_config(model, tiny_tokenizer())
    assert serves(config)
    for name, value in OTHERS.items():
        other = generation_config(model, tiny_tokenizer())
        setattr(other, name, value)
        assert not serves(other)


def test_answers_use_it(monkeypatch):
    model, tokenizer, seen = tiny_model(), tiny_tokenizer(), []
    original = rounds.generate_in_rounds
    monkeypatch.setattr(
        rounds, "generate_in_rounds", lambda *args, **kwargs: seen.append(1) or original(*args, **kwargs)
    )
    generate(model, tokenizer, ["one two", "three"], max_new_tokens=4)
    assert seen == [1]
    generate(model, tokenizer, ["one two", "three"], max_new_tokens=4, do_sample=True)
    assert seen == [1]
