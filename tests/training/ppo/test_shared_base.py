"""Policy, value and reward on one base model, and bases that cannot be shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from preftune.errors import ConfigError, ModelError
from preftune.models import load_model
from preftune.models.roles import REWARD, VALUE
from saved_reward import save_reward
from tiny import save_tiny, tiny_model, tiny_tokenizer

from .ppo_runs import letters_and_noise, logged, lora, trainer


@pytest.mark.parametrize("on_base", [True, False])
def test_a_run_is_not_resumed_with_another_reward_model_of_the_same_name(on_base: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    saved = save_reward(tmp_path / "reward", base if on_base else save_tiny(tmp_path / "other", seed=5))
    options = {"reward": None, "reward_model": [saved], "save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path / "run", base, **options).train()
    file = tmp_path / "reward" / "adapter_model.safetensors"
    save_file({name: weight * 2 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="the reward"):
        trainer(tmp_path / "run", base, max_steps=8, **options).train(resume_from_checkpoint=True)


def test_one_base_plays_every_role(tmp_path: Path) -> None:
    """Policy, value and reward are adapters on it, the reference is the adapters off; all of it trains and is saved."""
    base = save_tiny(tmp_path / "base")
    saved = save_reward(tmp_path / "reward", base)
    run = trainer(tmp_path / "run", base, reward=None, reward_model=[saved], max_new_tokens=8)
    parameters = dict(run.cast.trained.named_parameters())
    alone = sum(p.numel() for p in tiny_model().parameters())
    apart = sum(p.numel() for name, p in parameters.items() if "lora_" not in name and "value_head" not in name)
    assert apart == alone, "the base is there once"
    frozen = {name: p.clone() for name, p in parameters.items() if REWARD in name}
    start = {name: p.clone() for name, p in parameters.items() if VALUE in name}
    assert any(p.any() for name, p in start.items() if "lora_B" in name), "the value begins as the reward"
    run.train()
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())
    assert any(not torch.equal(parameters[name], before) for name, before in start.items())
    assert abs(logged(tmp_path / "run")[0]["objective/scores"]) > 1e-3


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "of_reward",
    [{}, {"init_lora_weights": "pissa"}, {"bias": "all"}, {"modules_to_save": ["score", "norm"]}],
    ids=["plain", "pissa", "bias", "norm"],
)
@pytest.mark.parametrize(
    "of_policy",
    [{}, {"init_lora_weights": "olora"}, {"bias": "lora_only"}, {"trainable_token_indices": [60, 61]}],
    ids=["plain", "olora", "bias", "tokens"],
)
def test_a_reward_on_the_base_changes_nothing_of_it(tmp_path: Path, of_reward, of_policy) -> None:
    """Where one adapter changes weights of the base, the reward is a model of its own: its scores are those that it
    gives by itself, also after training, and policy and reference begin as the model that was received.
    """
    from preftune.judges.reward_model import open_reward_model
    from preftune.logps import naive_logps, pack
    from preftune.reference import inference
    from preftune.types import TokenizedGroup

    base = str(tmp_path / "base")
    tiny_model("qwen3", attention_bias=True).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    saved = save_reward(tmp_path / "reward", base, **of_reward)
    batch = pack([TokenizedGroup([50, 60, 70], ([90, 91, 92],), (), id="0")])
    received = naive_logps(load_model(base).eval(), batch)
    run = trainer(tmp_path / "run", base, reward=None, reward_model=[saved], peft_config=lora(**of_policy))
    with inference(run.model):
        assert torch.allclose(naive_logps(run.model, batch), received, atol=1e-4)
        assert torch.allclose(run.reference.score(run.model, batch, run.engine), received, atol=1e-4)
    items = [("tell: ", "abc hello", {}), ("why: ", "zq", {})]
    alone = open_reward_model(saved).load().score_all(items)
    (scorer,) = run.score.scorers
    assert scorer.score_all(items) == pytest.approx(alone, abs=1e-4)
    run.train()
    assert scorer.score_all(items) == pytest.approx(alone, abs=1e-4)
    shared = any(REWARD in name for name, _ in run.model.named_parameters())
    assert shared == (not of_reward and not of_policy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_that_was_changed_in_memory_is_not_shared(tmp_path: Path, dtype: str) -> None:
    """A supervised adapter that was merged in memory: the model still has the name of its base."""
    from preftune.judges.reward_model import open_reward_model

    base = save_tiny(tmp_path / "base")
    saved = save_reward(tmp_path / "reward", base)
    tuned = get_peft_model(load_model(base, dtype=dtype), lora(init_lora_weights=False)).merge_and_unload()
    assert tuned.config._name_or_path == base
    run = trainer(tmp_path / "run", tuned, reward=None, reward_model=[saved])
    items = [("tell: ", "abc hello", {})]
    (scorer,) = run.score.scorers
    assert scorer.score_all(items) == pytest.approx(open_reward_model(saved).load().score_all(items), abs=1e-5)
    again = trainer(tmp_path / "again", load_model(base, dtype=dtype), reward=None, reward_model=[saved])
    assert any(REWARD in name for name, _ in again.model.named_parameters())


def test_a_policy_that_no_second_adapter_can_stand_beside(tmp_path: Path) -> None:
    from peft import AdaLoraConfig

    with pytest.raises(ModelError, match="which excludes an adapter for the value"):
        trainer(tmp_path, peft_config=AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    with pytest.raises(ModelError, match="which excludes an adapter for the value"):
        trainer(tmp_path, peft_config=lora(layer_replication=[[0, 2], [1, 2]]))


def test_models_of_their_own(tmp_path: Path) -> None:
    """All weights are trained: the reference is a frozen copy, the value a copy of the policy, told in the log."""
    run = trainer(tmp_path, peft_config=None, learning_rate=1e-3)
    received = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert run.reference.description == "a frozen copy of the trainable weights, as received"
    run.train()
    assert logged(tmp_path)[-1]["objective/kl"] != 0
    from preftune.reference.sources import FrozenCopy

    assert isinstance(run.reference, FrozenCopy)
    with run.reference.acting(run.model):
        assert all(torch.equal(p, received[name]) for name, p in run.model.named_parameters())
    named = trainer(
        tmp_path / "named",
        value_model=save_tiny(tmp_path / "value", seed=4),
        ref_model=tiny_model(),
        reward=[letters_and_noise, letters_and_noise],
        reward_ensemble="mean-std",
    )
    named.train()
    assert named.reference.description == "the ref_model that was passed"
    assert logged(tmp_path / "named")[0]["objective/scores_disagreement"] == 0.0


def test_a_policy_that_arrives_with_a_trained_adapter(tmp_path: Path) -> None:
    """As supervised fine-tuning leaves it: the reference is that adapter, not the base beneath it."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), lora(task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    run = trainer(tmp_path, model, peft_config=None)
    assert run.reference.description == "a frozen copy of the trainable weights, as received"
    run.train()
    first, last = logged(tmp_path)
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(last["objective/kl"]) > 1e-3


def test_an_adapter_under_another_name_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), lora(task_type="CAUSAL_LM"), adapter_name="mine")
    with pytest.raises(ModelError, match="the policy's adapter is 'mine' \\(LORA\\)"):
        trainer(tmp_path, model, peft_config=None)
