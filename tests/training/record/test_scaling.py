"""What is changed in a model in memory: the scaling of LoRA is saved, other numbers are warned of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from models_zoo import random_model
from preftune import DPOConfig, load_model
from preftune.training.record.scaling import keep_scaling
from preftune.training.setup import model as setup_model
from preftune.training.setup.unsaved import warn_of_unsaved
from tests.training.dpo_runs import lora_model, trainer
from tiny import save_tiny, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def set_scale(model: Any, scale: float = 5.0, part: str = "") -> None:
    for name, module in model.named_modules():
        if hasattr(module, "set_scale") and part in name:
            module.set_scale("default", scale)


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("options", "part", "alpha"),
    [
        ({}, "", 40),
        ({"use_rslora": True, "lora_alpha": 3}, "", 15),
        ({"alpha_pattern": {"q_proj": 2}, "rank_pattern": {"v_proj": 3}}, "", 40),
        ({"alpha_pattern": {"q_proj": 2}}, "layers.1.self_attn", 8),
        ({"lora_alpha": 1}, "mlp", 1),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_scaling_that_was_set_is_saved(
    options: dict[str, Any], part: str, alpha: float, when: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "base"))
    model = lora_model(base, trained=True, **options)
    if when == "before":
        set_scale(model, part=part)
    run = trainer(model, tmp_path / "out", max_steps=1)
    run.train()
    if when == "after":
        set_scale(model, part=part)
    run.save_model()
    torch.testing.assert_close(answers(load_model(tmp_path / "out")), answers(run.model), atol=1e-5, rtol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(
        answers(PeftModel.from_pretrained(plain, tmp_path / "out")), answers(load_model(tmp_path / "out"))
    )
    assert PeftConfig.from_pretrained(tmp_path / "out").lora_alpha == alpha
    assert caplog.text.count("was changed in memory; it is saved as") == 1


class Scales(TrainerCallback):
    """Sets the scale at the start of a step: a factor of the initial scale, by the number of steps before it."""

    def __init__(self, factors: dict[int, float]) -> None:
        self.factors = factors

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.factors:
            set_scale(model, self.factors[state.global_step])


def scaled_run(folder: Path, factors: dict[int, float], **settings: Any) -> Any:
    torch.manual_seed(0)
    model = lora_model(AutoModelForCausalLM.from_pretrained(folder / "base"))
    run = trainer(model, folder / settings.pop("name"), max_steps=4, **settings)
    run.add_callback(Scales(factors))
    return run


def adapter_weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in run.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("factors", [{1: 2.0, 3: 0.5}, {1: 2.0}])
def test_checkpoints_do_not_change_the_training_with_a_scaling_that_is_set(
    factors: dict[int, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny(tmp_path / "base")
    plain = scaled_run(tmp_path, factors, name="plain", save_strategy="no")
    plain.train()
    saved = scaled_run(tmp_path, factors, name="saved", save_strategy="steps", save_steps=1)
    saved.train()
    resumed = scaled_run(tmp_path, factors, name="saved", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "saved" / "checkpoint-2"))
    expected = adapter_weights(plain)
    for run in (saved, resumed):
        assert all(torch.equal(weight, expected[name]) for name, weight in adapter_weights(run).items())
        assert torch.equal(answers(run.model), answers(plain.model))
        assert run.model.peft_config["default"].lora_alpha == plain.model.peft_config["default"].lora_alpha


def test_a_scaling_is_loaded_with_the_weights_of_the_best_checkpoint(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    run = scaled_run(tmp_path, {1: 2.0, 3: 0.5}, name="run", save_strategy="steps", save_steps=2)
    run.train()
    run.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-2")
    run._load_best_model()
    best = load_model(tmp_path / "run" / "checkpoint-2")
    torch.testing.assert_close(answers(run.model), answers(best), atol=1e-5, rtol=1e-5)


def test_a_finished_run_is_loaded_with_its_scaling(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base")
    run = scaled_run(tmp_path, {1: 2.0}, name="run", save_strategy="steps", save_steps=2)
    run.train()
    run.save_model()
    again = scaled_run(tmp_path, {1: 2.0}, name="run", save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.nothing_to_do
    assert torch.equal(answers(again.model), answers(run.model))


def test_a_changed_alpha_is_not_replaced_by_that_of_the_checkpoint(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    trainer(
        lora_model(AutoModelForCausalLM.from_pretrained(base)), tmp_path, save_strategy="steps", max_steps=2
    ).train()
    model = lora_model(AutoModelForCausalLM.from_pretrained(base), lora_alpha=32)
    run = trainer(model, tmp_path, save_strategy="steps", max_steps=3, allow_changed=True)
    run.train(resume_from_checkpoint=True)
    assert PeftConfig.from_pretrained(tmp_path / "checkpoint-3").lora_alpha == 32


def test_an_alpha_that_is_no_whole_number_is_read(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "base"))
    model = lora_model(base, trained=True)
    set_scale(model, 0.3)
    keep_scaling(model)
    model.save_pretrained(tmp_path / "adapter")
    assert model.peft_config["default"].lora_alpha == pytest.approx(2.4)
    torch.testing.assert_close(answers(load_model(tmp_path / "adapter")), answers(model), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # PEFT's, about patterns of experts
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt2", "deepseek_v3", "gemma3"])
def test_a_scaling_that_was_not_set_is_left(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = lora_model(random_model(name))
    before = model.peft_config["default"].to_dict()
    keep_scaling(model)
    assert model.peft_config["default"].to_dict() == before
    assert "changed in memory" not in caplog.text


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "epsilon": (lambda m: setattr(m.model.norm, "variance_epsilon", 0.5), "norm.variance_epsilon is 0.5, not 1e-06"),
    "attention": (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.5), "layers.1.self_attn.scaling is 0.5"),
    "config": (lambda m: setattr(m.config, "rms_norm_eps", 0.5), "rms_norm_eps|variance_epsilon"),
    "activation": (lambda m: setattr(m.model.layers[0].mlp, "act_fn", torch.nn.GELU()), r"act_fn is GELU\(.*not SiLU"),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("change", ["", *CHANGES])
@pytest.mark.parametrize("adapter", [True, False])
def test_numbers_that_are_in_no_file_are_warned_of(
    change: str, adapter: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "base"))
    if change:
        CHANGES[change][0](model)
    trainer(lora_model(model) if adapter else model, tmp_path / "out")
    warned = [record.getMessage() for record in caplog.records if "the model was changed in memory" in record.msg]
    assert len(warned) == bool(change)
    if change:
        assert re.search(CHANGES[change][1], warned[0])
        assert ("The saved adapter" if adapter else "The saved model") in warned[0]


def test_a_base_that_is_nowhere_is_compared_with_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    CHANGES["epsilon"][0](model)
    trainer(lora_model(model), tmp_path)
    assert "the model was changed in memory" not in caplog.text


def test_a_base_of_another_revision_is_compared_with_that_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "hub" / "models--me--base"
    (place / "refs").mkdir(parents=True)
    for branch, commit, epsilon in (("main", "a" * 40, 1e-5), ("older", "b" * 40, 1e-6)):
        (place / "refs" / branch).write_text(commit)
        config = Path(save_tiny(place / "snapshots" / commit), "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": epsilon}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = lora_model(load_model("me/base", revision="older"))
    warn_of_unsaved(model, revision="older", trust_remote_code=False)
    assert "the model was changed in memory" not in caplog.text
    model.get_base_model().model.norm.variance_epsilon = 0.5
    warn_of_unsaved(model, revision="older", trust_remote_code=False)
    assert "variance_epsilon is 0.5, not 1e-06" in caplog.text


def test_the_revision_of_a_model_that_is_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(setup_model, "warn_of_unsaved", lambda model, *, revision, **more: asked.append(revision))
    named = DPOConfig(output_dir=str(tmp_path), report_to="none", model_init_kwargs={"revision": "older"})
    given = DPOConfig(output_dir=str(tmp_path), report_to="none")
    for model, args in (("me/base", named), (tiny_model(), given)):
        setup_model.prepare_model(
            model, args, peft_config=None, quantization_config=None, load=lambda name, **options: tiny_model()
        )
    assert asked == ["older", None]
