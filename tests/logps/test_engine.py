"""Every engine against the oracle, on every architecture: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models_zoo import random_model
from preftune.errors import ModelError, UnsupportedLayoutError
from preftune.logps import choose_engine, make_engine, naive_logps, pack, supports
from preftune.types import TokenizedGroup

from .groups import random_groups

SHARED = ["llama", "smollm3", "qwen3", "gemma2", "gemma3", "mistral", "gpt2", "phi3", "qwen3_moe"]
ALSO_SHARED = ["granite", "cohere", "gpt_oss", "deepseek_v3"]
SEPARATE = {
    "mamba": "2 of 2 layers do not use the attention interface",  # state-space
    "lfm2": "1 of 2 layers do not use the attention interface",  # hybrid: convolution and attention
    "falcon_h1": "packing changes its scores",  # hybrid within a layer
    "bloom": "2 of 2 layers do not use the attention interface",  # accepts an implementation, never calls it
    "codegen": "2 of 2 layers do not use the attention interface",
    "stablelm": "does not pass the layout on",
    "qwen2_moe": "packing changes its scores",  # its window lives in the mask alone
    "llama4": "packing changes its scores",  # so do its chunks
    "phi3_longrope": "packing changes its scores",  # looks at the longest position of the batch
}

# windows of 5 lie inside these lengths; the third group has three completions and three pairs
SIZES = ((4, (3, 9)), (12, (7, 2)), (6, (8, 1, 5)), (1, (1, 2)))


def oracle(name: str, groups) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores and gradients of a weighted sum of them, in float64 with eager attention and no sharing."""
    model = random_model(name, dtype=torch.float64)
    model.set_attn_implementation("eager")
    scores = naive_logps(model, pack(groups))
    (scores * torch.linspace(-1, 2, len(scores), dtype=torch.float64)).sum().backward()
    return scores.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SHARED + ALSO_SHARED)
def test_packed_equals_the_oracle_in_values_and_gradients(name):
    groups = random_groups(SIZES)
    expected, expected_grads = oracle(name, groups)
    model = random_model(name, dtype=torch.float64)
    engine, support = choose_engine(model)
    assert support.exact, support.reason  # a fallback would agree too, and counts as a failure here
    assert engine.name == "packed"
    scored = engine(model, pack(groups)).token_logps_T
    # transformers computes norms and rotary in float32 whatever the model's dtype, hence 1e-5 and not 1e-10
    torch.testing.assert_close(scored.detach(), expected, rtol=1e-5, atol=2e-5)
    (scored * torch.linspace(-1, 2, len(scored), dtype=torch.float64)).sum().backward()
    grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert set(expected_grads) <= set(grads)
    for key, expected_grad in expected_grads.items():
        scale = expected_grad.abs().max().clamp_min(1e-3)
        torch.testing.assert_close(grads[key] / scale, expected_grad / scale, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", sorted(SEPARATE))
def test_what_cannot_be_packed_falls_back_with_its_reason_and_is_still_exact(name):
    model = random_model(name)
    engine, support = choose_engine(model)
    assert engine.name == "separate"
    assert SEPARATE[name] in support.reason
    groups = random_groups(((4, (3, 5)), (6, (2, 2))))
    one_by_one = torch.cat(
        [naive_logps(model, pack([TokenizedGroup(g.prompt_ids, (c,), ())])) for g in groups for c in g.completions]
    )
    torch.testing.assert_close(engine(model, pack(groups)).token_logps_T, one_by_one, rtol=1e-4, atol=1e-4)


def test_separate_equals_the_oracle_in_gradients():
    groups = random_groups(SIZES)
    expected, expected_grads = oracle("llama", groups)
    model = random_model("llama", dtype=torch.float64)
    scored = make_engine(model, "separate")(model, pack(groups)).token_logps_T
    torch.testing.assert_close(scored.detach(), expected, rtol=1e-5, atol=2e-5)
    (scored * torch.linspace(-1, 2, len(scored), dtype=torch.float64)).sum().backward()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected_grads[key], rtol=1e-4, atol=1e-4, msg=key)


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    seed=st.integers(0, 9),
)
def test_neighbours_in_a_pack_do_not_change_a_score(sizes, seed):
    groups = random_groups(sizes, seed=seed)
    model = random_model("mistral")
    engine = make_engine(model, "packed")
    with torch.no_grad():
        together = engine(model, pack(groups)).token_logps_T
        alone = torch.cat([engine(model, pack([group])).token_logps_T for group in groups])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    groups, grads = random_groups(SIZES), []
    for checkpointing in (False, True):
        model = random_model("gemma3", dtype=torch.float64).train()
        engine = make_engine(model, "packed")
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        engine(model, pack(groups)).token_logps_T.sum().backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-9, atol=1e-9, msg=key)


def test_the_same_model_still_generates_with_left_padding():
    torch.manual_seed(0)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22]]
    for name in ("llama", "gemma2", "gemma3"):
        model = random_model(name)
        alone = [model.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :] for p in prompts]
        make_engine(model, "packed")
        ids = torch.tensor([prompts[0], [0] * 5 + prompts[1]])
        mask = torch.tensor([[1] * 8, [0] * 5 + [1] * 3])
        together = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 8:]
        for row, expected in enumerate(alone):
            length = len(expected)
            assert together[row, :length].tolist() == expected.tolist(), name


def test_a_model_that_loses_the_layout_is_refused_not_mis_scored():
    model = random_model("llama")
    engine = make_engine(model, "packed")
    attention = model.model.layers[0].self_attn
    inner = attention.forward
    attention.forward = lambda *a, group_layout=None, **k: inner(*a, **k)
    with pytest.raises(UnsupportedLayoutError, match="does not pass the layout"):
        engine(model, pack(random_groups()))


def test_an_unknown_request_of_the_attention_is_refused():
    from preftune.logps.attention.packed import grouped_attention

    batch = pack(random_groups())
    q = torch.randn(1, 2, batch.input_ids.shape[1], 4)
    with pytest.raises(UnsupportedLayoutError, match="position_bias"):
        grouped_attention(torch.nn.Module(), q, q, q, None, group_layout=batch.layout, position_bias=q)


def test_lora_on_the_head_is_refused_with_the_reason():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(random_model("llama", tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="modules_to_save"):
        make_engine(model, "packed")


def test_a_head_trained_whole_by_peft_gets_its_gradient():
    from peft import LoraConfig, get_peft_model

    base = random_model("llama", tie_word_embeddings=False)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    batch = pack(random_groups())
    expected = naive_logps(model, batch)
    scored = make_engine(model, "packed")(model, batch).token_logps_T
    torch.testing.assert_close(scored, expected, rtol=1e-5, atol=1e-5)
    scored.sum().backward()
    assert model.base_model.model.lm_head.modules_to_save["default"].weight.grad.abs().sum() > 0


def test_prompt_learning_adapters_fall_back_with_a_reason():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(random_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "virtual tokens" in supports(model).reason


def test_trying_a_twin_leaves_the_random_state_alone():
    model = random_model("qwen3", num_attention_heads=16, num_key_value_heads=4, hidden_size=128)
    before = torch.random.get_rng_state()
    assert supports(model).exact
    assert torch.equal(torch.random.get_rng_state(), before)
