"""Scores at the last completion token: packed and separate against the oracle and transformers' own pooling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from models_zoo import _BASE, CONFIGS, random_model
from preftune.errors import ModelError
from preftune.logps import pack
from preftune.logps.scores import choose_score_engine, naive_scores
from preftune.types import TokenizedGroup

from .groups import random_groups

SIZES = ((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5)), (1, (1, 2)))


def classifier(name: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides):
    set_seed(seed)
    values = {**_BASE, **CONFIGS[name], "num_labels": 1, **overrides}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
            elif "norm" not in key and "ln_" not in key:
                parameter.normal_(0.0, 0.2)
    return model.to(dtype).eval()


def gradients(model, scores) -> dict[str, torch.Tensor]:
    (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum().backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral", "gpt2"])
def test_packed_equals_the_oracle_in_values_and_gradients(name):
    groups = random_groups(SIZES)
    slow = classifier(name, dtype=torch.float64)
    slow.set_attn_implementation("eager")
    expected = naive_scores(slow, pack(groups))
    expected_grads = gradients(slow, expected)
    model = classifier(name, dtype=torch.float64)
    engine, support = choose_score_engine(model)
    assert support.exact, support.reason  # a fallback would agree too, and counts as a failure here
    assert engine.name == "packed"
    scored = engine(model, pack(groups))
    assert scored.dtype == torch.float64
    # transformers computes norms and rotary in float32 whatever the model's dtype, hence 1e-5 and not 1e-10
    torch.testing.assert_close(scored.detach(), expected.detach(), rtol=1e-5, atol=2e-5)
    grads = gradients(model, scored)
    assert set(grads) == set(expected_grads)
    assert "score.weight" in grads
    for key, expected_grad in expected_grads.items():
        scale = expected_grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grads[key] / scale, expected_grad / scale, rtol=1e-4, atol=1e-4, msg=key)


def test_what_cannot_be_packed_is_scored_one_by_one():
    model = classifier("stablelm")
    engine, support = choose_score_engine(model)
    assert engine.name == "separate"
    assert support.reason
    batch = pack(random_groups(SIZES))
    with torch.no_grad():
        torch.testing.assert_close(engine(model, batch), naive_scores(model, batch), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=4
    )
)
def test_neighbours_in_a_pack_do_not_change_a_score(sizes):
    model = classifier("mistral")
    engine, _ = choose_score_engine(model, "packed")
    groups = random_groups(sizes)
    with torch.no_grad():
        together = engine(model, pack(groups))
        alone = torch.cat([engine(model, pack([group])) for group in groups])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_pad_tokens_in_a_completion_are_tokens_like_all_others():
    """transformers would read the score before them."""
    model = classifier()
    assert model.config.pad_token_id == 0
    group = TokenizedGroup([5, 6, 7], ([8, 9, 0, 0], [8, 9]), ())
    with torch.no_grad():
        padded, plain = choose_score_engine(model)[0](model, pack([group])).tolist()
        transformers_own = model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 0, 0]])).logits.item()
    assert padded != pytest.approx(plain, abs=1e-4)
    assert transformers_own == pytest.approx(plain, abs=1e-5)


def test_without_pad_tokens_the_score_is_that_of_transformers():
    model = classifier()
    batch = pack(random_groups(SIZES))
    with torch.no_grad():
        ours = choose_score_engine(model)[0](model, batch)
        theirs = [
            model(input_ids=torch.tensor([[*group.prompt_ids, *completion]])).logits.item()
            for group in batch.groups
            for completion in group.completions
        ]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-5)


def test_a_model_without_a_head_of_one_label_is_refused():
    with pytest.raises(ModelError, match="has no head 'score'"):
        choose_score_engine(random_model("llama"))
    with pytest.raises(ModelError, match="has 3 labels"):
        choose_score_engine(classifier(num_labels=3))
