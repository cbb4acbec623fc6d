"""One base, several roles: who computes with which adapter, who trains, and a saved reward model put on the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from preftune.errors import ModelError
from preftune.judges.reward_model import open_reward_model
from preftune.logps import make_engine, pack, plain_layers
from preftune.models import load_model
from preftune.models.roles import (
    REWARD,
    VALUE,
    acting_as,
    adapter_parameters,
    load_trunk,
    on_this_base,
    reward_adapter,
    separate_value,
    value_adapter,
)
from preftune.reference.sources import adapters_off
from preftune.types import TokenizedGroup
from saved_reward import save_reward
from tiny import save_tiny, tiny_model, tiny_tokenizer

GROUPS = [TokenizedGroup([5, 6, 7], ([8, 9, 2], [10, 2]), ()), TokenizedGroup([4, 3], ([11],), ())]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


def nudge(model: Any, adapter: str, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    for name in adapter_parameters(model, adapter):
        parameters[name].data += 0.1 * torch.randn(parameters[name].shape, generator=generator)


def policy(model: Any = None) -> Any:
    torch.manual_seed(0)
    made = get_peft_model(tiny_model() if model is None else model, lora())
    nudge(made, "default")
    return made


def test_a_second_adapter_changes_nothing_for_the_first() -> None:
    model = policy()
    engine, batch = make_engine(model, "packed"), pack(GROUPS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        before = engine(model, batch).token_logps_T
        with adapters_off(model):
            reference = engine(model, batch).token_logps_T
        value = value_adapter(model, packed=True)
        nudge(model, VALUE, seed=2)
        torch.nn.init.normal_(value.head.weight)
        with value.acting():
            as_value = value.of_tokens(batch)
            with plain_layers():
                torch.testing.assert_close(value.of_tokens(batch), as_value, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value.of_tokens(batch), as_value, atol=1e-3), "outside, the policy's adapter computes"
        assert torch.equal(engine(model, batch).token_logps_T, before)
        with adapters_off(model):
            assert torch.equal(engine(model, batch).token_logps_T, reference)
    now = {name for name, p in model.named_parameters() if p.requires_grad}
    assert now == trained | set(adapter_parameters(model, VALUE)), "both train, and only they"


def test_gradients_go_to_the_role_that_computes() -> None:
    model = policy()
    engine, batch = make_engine(model, "packed"), pack(GROUPS)
    value = value_adapter(model, packed=True)
    torch.nn.init.normal_(value.head.weight)
    parameters = dict(model.named_parameters())

    def touched() -> set[str]:
        return {name.split(".")[-2] for name, p in parameters.items() if p.grad is not None and p.grad.any()}

    engine(model, batch).token_logps_T.sum().backward()
    assert touched() == {"default"}
    model.zero_grad(set_to_none=True)
    with value.acting():
        value.of_tokens(batch).sum().backward()
    assert touched() == {VALUE}
    assert value.head.weight.grad is not None


def test_a_value_begins_at_zero() -> None:
    model = policy()
    make_engine(model, "packed")
    value = value_adapter(model, packed=True)
    with value.acting():
        assert not value.of_tokens(pack(GROUPS)).any()


def test_a_saved_reward_model_scores_on_the_shared_base_as_by_itself(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    saved = save_reward(tmp_path / "reward", base)
    model = policy(load_model(base))
    assert on_this_base(model, saved)
    make_engine(model, "packed")
    before = sum(p.numel() for p in model.parameters())
    reward = reward_adapter(model, saved, packed=True)
    tokenizer = tiny_tokenizer()
    prompt = [{"role": "user", "content": "why?"}]
    ids = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    answers = ["so", "because it is"]
    completions = tuple(tokenizer(f"{answer}<|im_end|>\n", add_special_tokens=False)["input_ids"] for answer in answers)
    with torch.no_grad(), reward.acting():
        found = reward.of_completions(pack([TokenizedGroup(ids, completions, ())]))
    expected = open_reward_model(saved).load().score_all([(prompt, answer, {}) for answer in answers])
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3
    names = adapter_parameters(model, REWARD)
    parameters = dict(model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) - before == sum(parameters[n].numel() for n in names), "no base"
    assert not any(parameters[name].requires_grad for name in names)


def test_a_value_may_begin_as_the_reward(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    model = policy(load_model(base))
    make_engine(model, "packed")
    reward = reward_adapter(model, save_reward(tmp_path / "reward", base, r=2), packed=True)
    value = value_adapter(model, packed=True, like=reward)
    batch = pack(GROUPS)
    with torch.no_grad():
        with reward.acting():
            expected = reward.of_tokens(batch)
        with value.acting():
            assert torch.equal(value.of_tokens(batch), expected)
    assert expected.abs().max() > 1e-3


def test_another_base_is_noticed(tmp_path: Path) -> None:
    model = policy(load_model(save_tiny(tmp_path / "base")))
    other = save_reward(tmp_path / "reward", save_tiny(tmp_path / "other", seed=1))
    assert not on_this_base(model, other)
    assert not on_this_base(load_model(str(tmp_path / "base")), other), "without an adapter there is no base to share"
    model.save_pretrained(tmp_path / "language")
    with pytest.raises(ModelError, match="not a reward model"):
        reward_adapter(model, str(tmp_path / "language"), packed=True)


def test_models_of_their_own(tmp_path: Path) -> None:
    """A trunk from a language model begins at zero; from a reward model it says what that one says."""
    base = save_tiny(tmp_path / "base")
    trunk, head = load_trunk(base)
    assert head is None
    batch = pack(GROUPS)
    assert not separate_value(trunk, packed=True).of_tokens(batch).any()
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    classifier.save_pretrained(tmp_path / "classifier")
    trunk, head = load_trunk(str(tmp_path / "classifier"))
    value = separate_value(trunk, packed=True, head=head)
    with torch.no_grad():
        found = value.of_completions(batch)
        ids = torch.tensor([[5, 6, 7, 8, 9, 2]])
        assert float(found[0]) == pytest.approx(float(classifier(input_ids=ids).logits), abs=1e-4)
    with pytest.raises(ModelError, match="not a whole model"):
        load_trunk(save_reward(tmp_path / "reward", base))


def test_which_weights_train_survives_an_error() -> None:
    model = policy()
    value_adapter(model, packed=False)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), acting_as(model, VALUE):
        raise RuntimeError("inside")
    assert model.active_adapter == "default"
    assert [p.requires_grad for p in model.parameters()] == flags
