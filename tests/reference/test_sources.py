"""Who plays the reference, and that playing it leaves no trace on the policy."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from logps.groups import random_groups
from models_zoo import random_model
from preftune.errors import ReferenceMismatchError
from preftune.logps import make_engine, naive_logps, pack
from preftune.reference import AdapterOff, AsReceived, ExplicitModel, FrozenCopy, adapters_off, choose_source, inference
from preftune.types import TokenizedGroup


def with_lora(model=None, **options):
    torch.manual_seed(0)
    return get_peft_model(
        model or random_model(), LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **options})
    )


def train_a_bit(model) -> None:
    """Move everything that trains, as optimiser steps would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def choose(model, **options):
    """The source, the engine and a batch."""
    engine, batch = make_engine(model, "packed"), pack(random_groups())
    return choose_source(model, batch, engine, **{"trained": lambda: False, "reload": None, **options}), engine, batch


def oracle(model, batch) -> torch.Tensor:
    with inference(model):
        return naive_logps(model, batch)


def sft_adapter(**options):
    model = with_lora(**options)
    train_a_bit(model)
    return model


MODELS = {
    "fresh LoRA": (with_lora, AdapterOff),
    "fresh LoRA with a trained head": (lambda: with_lora(modules_to_save=["lm_head"]), FrozenCopy),
    "SFT adapter that continues": (sft_adapter, FrozenCopy),
    "SFT adapter with a trained head": (lambda: sft_adapter(modules_to_save=["lm_head"]), FrozenCopy),
    "PiSSA": (lambda: with_lora(init_lora_weights="pissa"), FrozenCopy),
    "OLoRA": (lambda: with_lora(init_lora_weights="olora"), FrozenCopy),
    "random B": (lambda: with_lora(init_lora_weights=False), FrozenCopy),
    "all biases": (lambda: with_lora(random_model(attention_bias=True), bias="all"), FrozenCopy),
    "biases of LoRA layers": (lambda: with_lora(random_model(attention_bias=True), bias="lora_only"), FrozenCopy),
    "full": (random_model, AsReceived),
}


@pytest.mark.parametrize("case", MODELS)
def test_the_reference_is_the_model_as_received_before_and_after_training(case):
    make, expected_source = MODELS[case]
    model = make()
    received = copy.deepcopy(model)
    source, engine, batch = choose(model)
    assert type(source) is expected_source
    expected = oracle(received, batch)
    torch.testing.assert_close(source.score(model, batch, engine), expected, rtol=1e-5, atol=1e-4)
    if not source.live:
        return
    train_a_bit(model)
    assert (oracle(model, batch) - expected).abs().max() > 0.05  # the policy has left
    torch.testing.assert_close(source.score(model, batch, engine), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in MODELS if case != "full"])
def test_scoring_as_the_reference_leaves_weights_gradients_and_flags_alone(case):
    model = MODELS[case][0]()
    source, engine, batch = choose(model)
    train_a_bit(model)
    model.train()
    model.base_model.model.model.layers[1].eval()
    engine(model, batch).token_logps_T.sum().backward()

    def state():
        return {
            name: (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone(), p.data_ptr())
            for name, p in model.named_parameters()
        }, {name: module.training for name, module in model.named_modules()}

    parameters, training = state()
    source.score(model, batch, engine)
    after, training_after = state()
    assert training_after == training
    for name, (value, trains, grad, pointer) in parameters.items():
        assert torch.equal(after[name][0], value), name
        assert after[name][1] == trains, name
        assert (grad is None) == (after[name][2] is None), name
        assert grad is None or torch.equal(after[name][2], grad), name
        assert after[name][3] == pointer, name  # the optimiser holds this very memory


def test_switching_adapters_off_does_not_make_frozen_adapter_weights_trainable():
    model = with_lora()
    model.add_adapter("frozen", LoraConfig(r=2, target_modules=["q_proj"]))
    wanted = {name: "default" in name and "lora_" in name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])
    for _ in range(2):
        with adapters_off(model):
            pass
        assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted


def test_switching_adapters_off_is_undone_after_an_error_too():
    model = with_lora()
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), adapters_off(model):
        raise RuntimeError("inside")
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters


def test_inference_puts_every_modules_training_flag_back():
    model = random_model().train()
    model.model.layers[0].mlp.eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    with contextlib.suppress(RuntimeError), inference(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_the_reference_is_scored():
    model = random_model(attention_dropout=0.5)
    expected = oracle(model, pack(random_groups()))
    source, engine, batch = choose(model.train())
    torch.testing.assert_close(source.score(model, batch, engine), expected, rtol=1e-5, atol=1e-4)


def test_a_fully_trained_policy_never_scores_as_its_own_reference():
    model, trained = random_model(), False
    source, engine, batch = choose(model, trained=lambda: trained)
    source.score(model, batch, engine)
    trained = True
    with pytest.raises(ReferenceMismatchError, match="only the model in memory"):
        source.score(model, batch, engine)


def test_a_reload_must_have_the_weights_that_were_received():
    model, received = random_model(), random_model()
    make_engine(received, "packed")
    source, engine, batch = choose(model, trained=lambda: True, reload=lambda: received)
    train_a_bit(model)
    torch.testing.assert_close(source.score(model, batch, engine), oracle(received, batch), rtol=1e-5, atol=1e-4)
    impostor, _, _ = choose(random_model(), trained=lambda: True, reload=lambda: random_model(seed=1))
    with pytest.raises(ReferenceMismatchError, match="weights differ"):
        impostor.score(model, batch, engine)


def test_a_reload_serves_until_it_is_let_go_and_is_not_kept_after():
    loads = []

    def reload():
        loads.append(random_model())
        make_engine(loads[-1], "packed")
        return loads[-1]

    source, engine, batch = choose(random_model(), trained=lambda: True, reload=reload)
    for _ in range(3):
        source.score(None, batch, engine)
    assert len(loads) == 1
    source.let_go()
    source.score(None, batch, engine)
    assert len(loads) == 2


def test_an_explicit_reference_is_released_and_used_again_only_while_the_user_holds_it():
    model, reference = random_model(), random_model(seed=1)
    engine, batch = make_engine(model, "packed"), pack(random_groups())
    expected = oracle(reference, batch)
    source = ExplicitModel(reference, make_engine(reference, "packed"))
    source.release()
    torch.testing.assert_close(source.score(model, batch, engine), expected, rtol=1e-5, atol=1e-4)
    del reference
    with pytest.raises(ReferenceMismatchError, match="released"):
        source.score(model, batch, engine)


def test_rows_of_an_embedding_that_a_probe_does_not_reach_are_found_by_their_weights():
    model = with_lora(target_modules=["embed_tokens", "q_proj"])
    engine, batch = make_engine(model, "packed"), pack(random_groups())
    options = {"trained": lambda: False, "reload": None}
    assert isinstance(choose_source(model, batch, engine, **options), AdapterOff)
    met = {token for group in batch.groups for part in (group.prompt_ids, *group.completions) for token in part}
    unmet = next(token for token in range(128) if token not in met)
    with torch.no_grad():
        factors = model.base_model.model.model.embed_tokens
        factors.lora_embedding_A["default"][:, unmet] = 1.0
        factors.lora_embedding_B["default"].fill_(1.0)
    assert isinstance(choose_source(model, batch, engine, **options), FrozenCopy)


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_rows_of_a_frozen_adapter_beside_a_fresh_one_count_too(kind):
    """An adapter that taught the model new tokens is frozen, and a fresh one trains on top: the reference keeps it."""
    engine_groups = random_groups()
    met = {token for group in engine_groups for part in (group.prompt_ids, *group.completions) for token in part}
    unmet = next(token for token in range(128) if token not in met)
    taught = {"target_modules": ["embed_tokens"]} if kind == "embedding" else {"trainable_token_indices": [unmet]}
    model = with_lora(**taught)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_embedding_A" in name:
                parameter[:, unmet] = 1.0
            if "lora_embedding_B" in name or "trainable_tokens_delta" in name:
                parameter.fill_(1.0)
    model.add_adapter("fresh", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["k_proj"]))
    model.base_model.set_adapter(["default", "fresh"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".fresh." in name)
    engine, batch = make_engine(model, "packed"), pack(engine_groups)
    source = choose_source(model, batch, engine, trained=lambda: False, reload=None)
    assert isinstance(source, FrozenCopy)
    seen = pack([TokenizedGroup([unmet, 5], ([7, unmet, 8],), (), id="0")])
    assert torch.allclose(source.score(model, seen, engine), naive_logps(model, seen), atol=1e-4)


def test_a_trained_alora_shows_where_it_is_invoked_and_a_probe_may_lack_that():
    model = with_lora(task_type="CAUSAL_LM", alora_invocation_tokens=[126, 127])
    engine, batch = make_engine(model, "separate"), pack(random_groups())
    options = {"trained": lambda: False, "reload": None}
    assert isinstance(choose_source(model, batch, engine, **options), AdapterOff)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    assert isinstance(choose_source(model, batch, engine, **options), FrozenCopy)
