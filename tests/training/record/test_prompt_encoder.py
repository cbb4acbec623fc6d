"""Virtual tokens: PEFT saves those that an encoder makes, and a training continues with the encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import CPTConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from preftune import load_model
from preftune.errors import CheckpointError
from preftune.training.record.prompt_encoder import FILE
from tests.training.dpo_runs import trainer
from tiny import rows, save_tiny

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
KINDS = {
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "projected": lambda: PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16, **CAUSAL
    ),
    "p-tuning": lambda: PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16, **CAUSAL),
    "cpt": lambda: CPTConfig(
        cpt_token_ids=[5, 6, 7], cpt_mask=[1] * 3, cpt_tokens_type_mask=[1, 2, 3], opt_projection_epsilon=0.2, **CAUSAL
    ),
}  # fmt: skip
OPTIONS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    base = save_tiny(tmp_path / "base")

    def make(kind: str, folder: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), KINDS[kind]())
        return trainer(model, folder, **{**OPTIONS, **options})

    return make


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in run.model.prompt_encoder.state_dict().items()}


def answers(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_continues_with_the_encoder(kind: str, made: Any, tmp_path: Path) -> None:
    whole = made(kind, tmp_path / "out")
    whole.train()
    whole.save_model()
    trained = weights(whole)  # a forward pass of CPT changes them
    again = made(kind, tmp_path / "out")
    again.train(resume_from_checkpoint="auto")
    assert again.nothing_to_do
    assert same(weights(again), trained)
    torch.testing.assert_close(answers(load_model(tmp_path / "out")), answers(whole.model))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    (tmp_path / "out" / "preftune_weights.json").unlink()
    resumed = made(kind, tmp_path / "out")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert same(weights(resumed), trained)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["p-tuning", "cpt"])
def test_the_best_weights_are_those_of_the_encoder(kind: str, made: Any, tmp_path: Path) -> None:
    found = []
    for greater in (True, False):
        folder = tmp_path / str(greater)
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": rows(4)}
        run = made(kind, folder, **best, metric_for_best_model="loss", greater_is_better=greater)
        run.train()
        found.append(run.state.best_global_step)
        short = made(
            kind, tmp_path / f"short-{greater}", **{**best, "load_best_model_at_end": False}, max_steps=found[-1]
        )
        short.train()
        assert same(weights(run), weights(short))
    assert sorted(found) == [2, 4]


def test_tokens_without_their_encoder_are_refused(made: Any, tmp_path: Path) -> None:
    made("p-tuning", tmp_path / "out").train()
    folder = tmp_path / "out" / "checkpoint-4"
    for name in (FILE, "preftune_manifest.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="holds the virtual tokens of P_TUNING and not the encoder"):
        made("p-tuning", tmp_path / "out", max_steps=6).train(resume_from_checkpoint=str(folder))
