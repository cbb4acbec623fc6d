from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from preftune.errors import ModelError, RequestError
from preftune.generation.generate import Completion, baseline, generate, generation_config
from tests.models.tiny import tiny_llama, tiny_tokenizer

PROMPTS = ["Hi", "What is the capital of France, and why?", "a", "Tell me more about it."]
CHATS = [[{"role": "user", "content": p}] for p in PROMPTS]


def _by_hand(model, tokenizer, prompt, new: int) -> Completion:
    """One prompt at a time, no padding, no cache."""
    ids = list(tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True)["input_ids"])
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < new:
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                return Completion(tokenizer.decode(ids[start:], skip_special_tokens=True), len(ids) - start, True)
            ids.append(token)
    return Completion(tokenizer.decode(ids[start:], skip_special_tokens=True), new, False)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_answer_as_one_prompt_alone_would(batch_size: int) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = [_by_hand(model, tokenizer, chat, 12) for chat in CHATS]
    assert generate(model, tokenizer, CHATS, max_new_tokens=12, batch_size=batch_size) == expected
    assert any(answer.text for answer in expected)


def _ends_at(model, tokenizer, step: int) -> None:
    """Make the model write the end token after `step` tokens."""
    original = model.forward

    def forward(*args, **kwargs):
        output = original(*args, **kwargs)
        forward.calls += 1
        if forward.calls > step:
            output.logits[..., tokenizer.eos_token_id] = 1e9
        else:
            output.logits[..., tokenizer.eos_token_id] = -1e9
        return output

    forward.calls = 0
    model.forward = forward


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_an_end_is_seen_even_when_it_is_the_padding_token(pad_is_eos: bool) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    _ends_at(model, tokenizer, 4)
    (answer,) = generate(model, tokenizer, ["hello"], max_new_tokens=10)
    assert (answer.tokens, answer.finished) == (4, True)
    model.forward.calls = -10
    (answer,) = generate(model, tokenizer, ["hello"], max_new_tokens=10)
    assert (answer.tokens, answer.finished) == (10, False)


def test_nothing_is_left_changed() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.padding_side = "right"
    model.train()
    model.model.layers[0].eval()  # somebody's choice
    model.config.use_cache = False
    model.generation_config.use_cache = False
    before = model.generation_config.to_dict()
    state = torch.random.get_rng_state()
    generate(model, tokenizer, CHATS, max_new_tokens=3, do_sample=True, temperature=0.9, top_p=0.9)
    assert tokenizer.padding_side == "right"
    assert model.training
    assert not model.model.layers[0].training
    assert not model.model.layers[0].mlp.training
    assert model.model.layers[1].mlp.training
    assert model.config.use_cache is False
    assert model.generation_config.to_dict() == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.requires_grad for p in model.parameters())


def test_the_cache_is_used_though_training_switched_it_off() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.train()
    widths: list[int] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda m, inputs, out: widths.append(inputs[0].shape[1]))
    generate(model, tokenizer, ["hello"], max_new_tokens=5)
    hook.remove()
    assert widths[1:] == [1] * (len(widths) - 1)
    assert len(widths) > 1


def test_sampling_is_repeatable_and_seeded() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()

    def sample(seed: int) -> list[Completion]:
        return generate(model, tokenizer, CHATS, max_new_tokens=12, do_sample=True, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1) != generate(model, tokenizer, CHATS, max_new_tokens=12)


def test_settings_can_be_recorded() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config.eos_token_id = [7]
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    greedy = generation_config(model, tokenizer, max_new_tokens=9)
    assert (greedy.max_new_tokens, greedy.do_sample, greedy.temperature) == (9, False, None)
    assert greedy.eos_token_id == [7, 2]
    assert greedy.to_diff_dict()["max_new_tokens"] == 9
    assert generation_config(model, tokenizer, do_sample=True).temperature == 0.6


def test_template_kwargs_reach_the_template() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if shout %}!!!!!{% endif %}"
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].shape[1]))
    generate(model, tokenizer, CHATS[:1], max_new_tokens=1)
    generate(model, tokenizer, CHATS[:1], max_new_tokens=1, chat_template_kwargs={"shout": True})
    generate(model, tokenizer, CHATS[:1], max_new_tokens=1, chat_template_kwargs=[{"shout": True}])
    assert seen == [2, 7, 7]
    with pytest.raises(RequestError, match="give one per prompt"):
        generate(model, tokenizer, CHATS, chat_template_kwargs=[{}])


def test_progress_and_empty_list() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    seen: list[tuple[int, int]] = []
    generate(model, tokenizer, CHATS, max_new_tokens=1, batch_size=3, progress=lambda *s: seen.append(s))
    assert seen == [(3, 4), (4, 4)]
    assert generate(model, tokenizer, []) == []


def test_what_cannot_be_generated_is_reported() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(ModelError, match=r"Prompt 1 has 400 tokens.*512 positions"):
        generate(model, tokenizer, ["x", "y" * 400], max_new_tokens=200)
    model.resize_token_embeddings(60)
    with pytest.raises(ModelError, match="has only 60 embeddings"):
        generate(model, tokenizer, ["!", "x"], max_new_tokens=2)
    with pytest.raises(RequestError, match="at least 1"):
        generate(model, tokenizer, ["x"], max_new_tokens=0)
    with pytest.raises(RequestError, match="Prompt 0 is empty"):
        generate(model, tokenizer, [""])
    for template, message in ((None, "no chat template"), ("", "no chat template"), ("{# #}", "nothing for prompt 0")):
        tokenizer.chat_template = template
        with pytest.raises(ModelError, match=message):
            generate(model, tokenizer, CHATS)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_mixed_precision_models_can_speak(saved: list[str] | None) -> None:
    """A trained bf16 model has float32 adapters, and perhaps a float32 head: no dtype error outside the trainer."""
    from preftune.models.precision import Precision, apply_precision

    model, tokenizer = tiny_llama(torch.bfloat16, tied=False), tiny_tokenizer()
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=saved))
    apply_precision(adapted, Precision(torch.bfloat16, torch.bfloat16, False, "test"))
    assert len(generate(adapted, tokenizer, CHATS, max_new_tokens=3)) == 4
    with baseline(adapted):
        assert len(generate(adapted, tokenizer, CHATS, max_new_tokens=3)) == 4


def test_baseline_is_the_model_as_received_and_restores_gradients() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    plain = generate(model, tokenizer, CHATS, max_new_tokens=8)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        if "lora_A" in name:
            parameter.requires_grad_(False)  # frozen on purpose: PEFT would switch it on
    before = {n: p.requires_grad for n, p in adapted.named_parameters()}
    aligned = generate(adapted, tokenizer, CHATS, max_new_tokens=8)
    with baseline(adapted) as base:
        assert generate(base, tokenizer, CHATS, max_new_tokens=8) == plain
    assert aligned != plain
    assert {n: p.requires_grad for n, p in adapted.named_parameters()} == before
    with pytest.raises(KeyError), baseline(adapted):
        raise KeyError
    assert {n: p.requires_grad for n, p in adapted.named_parameters()} == before
    assert generate(adapted, tokenizer, CHATS, max_new_tokens=8) == aligned


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_adapters_that_change_the_base_have_no_baseline(options: dict) -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], **options))
    with pytest.raises(ModelError, match="not the model as received"), baseline(adapted):
        pass


def test_a_model_without_adapter_has_no_baseline() -> None:
    with pytest.raises(ModelError, match="no adapter to switch off"), baseline(tiny_llama()):
        pass


def test_the_head_gets_one_matrix_and_keeps_no_hook():
    """What is not contiguous is multiplied row by row, with a copy of the head's weight for each."""
    model, seen = tiny_llama(), []
    head = model.get_output_embeddings()
    original = head.forward
    head.forward = lambda states: seen.append(states.is_contiguous()) or original(states)
    generate(model, tiny_tokenizer(), ["one two three", "four"], max_new_tokens=2)
    assert seen == [True, True]
    assert not head._forward_pre_hooks
