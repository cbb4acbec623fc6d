"""SimPO, CPO, ORPO and their kin: no reference is computed, kept or loaded, and the numbers are TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

import preftune
from preftune.errors import ConfigError
from preftune.losses import LOSSES
from preftune.reference import sources
from preftune.storage.cache_folder import cache_folder
from tiny import rows, save_tiny, tiny_model, tiny_tokenizer


def triples(count: int) -> list[dict[str, str]]:
    """Rows with a third, gold answer."""
    return [{**row, "reference": f"{row['chosen']}, of course"} for row in rows(count)]


FREE = sorted(name for name, loss in LOSSES.items() if not loss.reference)


def options_for(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 6, "logging_steps": 1,
        "learning_rate": 1e-3, "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "seed": 3, **options,
    }  # fmt: skip


def losses_of(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.sample(6)
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("name", FREE)
def test_there_is_no_reference_pass_and_no_second_model(name, lora, tmp_path, monkeypatch):
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("reference scores were requested")

    for source in (sources.AdapterOff, sources.FrozenCopy, sources.AsReceived, sources.ExplicitModel):
        monkeypatch.setattr(source, "__init__", never)
    monkeypatch.setattr(preftune.reference.ReferenceScores, "score_groups", never)
    trainer = preftune.DPOTrainer(
        model=tiny_model(),
        args=preftune.DPOConfig(**options_for(tmp_path, loss_type=name)),
        train_dataset=triples(24),
        eval_dataset=triples(8),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    found = losses_of(trainer)
    assert found[-1] < found[0]
    assert torch.isfinite(torch.tensor(list(trainer.evaluate().values()), dtype=torch.float64)).all()
    assert (trainer.reference.hits, trainer.reference.misses) == (0, 0)
    assert not (cache_folder() / "reference").exists()
    assert trainer.reference.source.description == "no reference: the loss has none"


def test_the_guard_compares_with_the_model_as_received(tmp_path):
    """It watches answers drift from where the run began, whatever the loss; figures of the rewards do not count."""
    trainer = preftune.DPOTrainer(
        model=tiny_model(),
        args=preftune.DPOConfig(**options_for(tmp_path, loss_type="simpo", guard="warn", guard_prompts=2)),
        train_dataset=rows(24),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "aligned with SimPO (arXiv:2405.14734)" in card
    assert "| reference | no reference: the loss has none |" in card
    assert "adapter switched off" in trainer.reference.source.description
    assert not {alarm.name for alarm in trainer.guard.alarms} & {"learning-rate-too-high", "chosen-falls"}


def test_a_reference_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ref_model has no effect with loss_type=simpo"):
        preftune.DPOTrainer(
            model=tiny_model(), ref_model=tiny_model(), train_dataset=rows(24), processing_class=tiny_tokenizer(),
            args=preftune.DPOConfig(**options_for(tmp_path, loss_type="simpo")),
        )  # fmt: skip


def test_margins_that_the_loss_does_not_use_are_refused(tmp_path):
    def trainer(data: Any, loss: str) -> Any:
        return preftune.DPOTrainer(
            model=tiny_model(), args=preftune.DPOConfig(**options_for(tmp_path, loss_type=loss)),
            train_dataset=data, processing_class=tiny_tokenizer(),
        )  # fmt: skip

    with pytest.raises(ConfigError, match="the rows have margins, which loss_type=orpo does not use"):
        trainer([{**row, "margin": 1.0} for row in rows(8)], "orpo")
    with pytest.raises(ConfigError, match="but no row has ratings"):
        trainer(rows(8), "reward_aware")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": ["sigmoid", "simpo"]}, "names 2 losses, but CPOTrainer has one"),
        ({"loss_type": "hinge", "f_divergence_type": "forward_kl"}, "no effect with loss_type=hinge"),
    ],
)
def test_what_cpo_would_leave_out_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        preftune.CPOConfig(**options_for(tmp_path, **options))


def test_cpo_has_its_authors_learning_rate(tmp_path):
    trainer = preftune.CPOTrainer(
        model=tiny_model(), args=preftune.CPOConfig(**options_for(tmp_path, learning_rate=None)),
        train_dataset=rows(8), processing_class=tiny_tokenizer(),
    )  # fmt: skip
    assert trainer.args.learning_rate == 1e-6


CASES = {
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    "TRL's simpo": {"loss_type": "simpo"},
    "cpo": {},
    "cpo, smoothed": {"label_smoothing": 0.1, "cpo_alpha": 0.5},
    "hinge": {"loss_type": "hinge"},
    "ipo": {"loss_type": "ipo"},
    "alphapo": {"loss_type": "simpo", "alpha": 0.25, "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.25},
}


def tokenizer_without_bos() -> Any:
    """TRL's experimental trainers put a bos token in front that the tokenizer itself does not."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def both(folder: Path, ours: Any, theirs: Any, **options: Any) -> tuple[Any, Any]:
    save_tiny(folder)
    made = []
    for trainer, config in (ours, theirs):
        set_seed(11)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder),
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        args = config(**options_for(folder / config.__module__, train_sampling_strategy="sequential", **options))
        made.append(
            trainer(
                model=model,
                args=args,
                train_dataset=Dataset.from_list(triples(24)),
                processing_class=tokenizer_without_bos(),
            )
        )
    return made[0], made[1]


@pytest.mark.sample(3)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_cpo_and_simpo_are_those_of_trl(case, tmp_path):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    ours, theirs = both(tmp_path, (preftune.CPOTrainer, preftune.CPOConfig), (CPOTrainer, CPOConfig), **CASES[case])
    found, expected = losses_of(ours), losses_of(theirs)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert found[-1] != pytest.approx(found[0], abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_orpo_is_that_of_trl_but_for_the_tokens_of_the_prompt(tmp_path):
    """TRL's likelihood term covers prompt and answer; the paper's, and preftune's, the answer."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    ours, theirs = both(tmp_path, (preftune.ORPOTrainer, preftune.ORPOConfig), (ORPOTrainer, ORPOConfig))
    assert losses_of(ours)[0] != pytest.approx(losses_of(theirs)[0], abs=1e-3)
    one, other = ours.state.log_history[0], theirs.state.log_history[0]
    for name in ("rewards/chosen", "rewards/rejected"):
        assert one[name] == pytest.approx(float(other[name]), abs=1e-5)
    likelihood = -one["logps/chosen"] / one["completions/chosen_length"]
    assert one["loss"] - likelihood == pytest.approx(other["loss"] - float(other["nll_loss"]), abs=1e-4)
    assert one["loss"] - likelihood == pytest.approx(-0.1 * float(other["log_odds_ratio"]), abs=1e-4)


TPO_CASES = {
    "tpo": {"beta": 0.1},
    "tpo, weighed and smoothed": {"beta": 0.1, "tpo_alpha": 0.3, "label_smoothing": 0.1},
    "tpo without gold answers": {"beta": 0.01, "tpo_alpha": 0.0},
    "tpo-l": {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 1.0},
    "hinge": {"loss_type": "hinge", "beta": 0.1},
    "ipo": {"loss_type": "ipo", "beta": 0.5},
}


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TPO_CASES)
def test_tpo_is_that_of_trl(case, tmp_path):
    from trl.experimental.tpo import TPOConfig, TPOTrainer

    ours, theirs = both(tmp_path, (preftune.TPOTrainer, preftune.TPOConfig), (TPOTrainer, TPOConfig), **TPO_CASES[case])
    found, expected = losses_of(ours), losses_of(theirs)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert found[-1] != pytest.approx(found[0], abs=1e-3)
