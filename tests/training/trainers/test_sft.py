"""Supervised fine-tuning: the losses are TRL's, rows never see each other, the rest is the common base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from preftune.errors import ConfigError
from preftune.logps import choose_engine, pack
from preftune.logps.request import ScoringRequest, scoring
from preftune.training.config.sft import SFTConfig
from preftune.training.setup.neftune import lengths_of, noisy_embeddings
from preftune.training.trainers.sft import SFTTrainer
from preftune.types import TokenizedGroup
from tiny import CHAT_TEMPLATE, chat_rows, save_tiny, tiny_model, tiny_tokenizer

STEPS = 20


def demonstrations(count: int = 96) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in chat_rows(count)]


def conversations(count: int = 96) -> list[dict[str, Any]]:
    rows = chat_rows(2 * count)
    return [
        {"messages": [*a["prompt"], *a["chosen"], *b["prompt"], *b["chosen"]]}
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]


def texts(count: int = 96) -> list[dict[str, Any]]:
    return [{"text": f"{row['prompt'][0]['content']} {row['chosen'][0]['content']}"} for row in chat_rows(count)]


def config(kind: type, folder: Path, **options: Any) -> Any:
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return kind(output_dir=str(folder), **{**defaults, **options})


def trained(kind: type, trainer: type, folder: Path, rows: Any, *, lora: bool = False, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        set_seed(11)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    made = trainer(
        model=model,
        args=config(kind, folder / kind.__module__.split(".")[0], **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    made.train()
    return made


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (demonstrations, {}),
    "lora": (demonstrations, {"lora": True}),
    "shuffled": (demonstrations, {"lora": True, "train_sampling_strategy": "random"}),
    "truncated": (demonstrations, {"max_length": 40}),
    "texts": (texts, {}),
}


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore:::trl")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_losses_and_accuracies_agree_with_trl(case, tmp_path):
    make_rows, options = CASES[case]
    options = {"train_sampling_strategy": "sequential", **options}
    save_tiny(tmp_path)
    theirs = trained(trl.SFTConfig, trl.SFTTrainer, tmp_path, make_rows(), **options)
    ours = trained(SFTConfig, SFTTrainer, tmp_path, make_rows(), **options)
    losses = logged(ours, "loss")
    assert len(losses) == STEPS
    assert losses[-1] != pytest.approx(losses[0], abs=1e-2)  # it learned, so that the steps differ
    assert losses == pytest.approx(logged(theirs, "loss"), abs=1e-4)
    if case == "full":  # the mean over a step's tokens, where TRL's is a mean of its micro-batches' means
        means = logged(ours, "mean_token_accuracy")
        assert means == pytest.approx(logged(theirs, "mean_token_accuracy"), abs=0.05)


@pytest.mark.filterwarnings("ignore:::trl")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_assistants_turns_of_trl(tmp_path):
    """TRL needs marks in the template for it; ours finds the turns in any template, and the same ones."""
    save_tiny(tmp_path)
    template = CHAT_TEMPLATE.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>' + '\n' }}{% endif %}",
    )
    marked = tmp_path / "marked.jinja"
    marked.write_text(template)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    options = {"train_sampling_strategy": "sequential", "assistant_only_loss": True, "max_steps": 5}
    their_trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path),
        args=config(trl.SFTConfig, tmp_path / "trl", **options),
        train_dataset=Dataset.from_list(conversations()),
        processing_class=tokenizer,
    )
    their_trainer.train()
    ours = trained(SFTConfig, SFTTrainer, tmp_path, conversations(), **{**options, "assistant_only_loss": None})
    assert logged(ours, "loss") == pytest.approx(logged(their_trainer, "loss"), abs=1e-4)


def test_batches_accumulation_and_budgets_do_not_change_the_update(tmp_path):
    save_tiny(tmp_path)
    rows = demonstrations(48)
    shapes = [(8, 1, None), (2, 4, None), (8, 1, 150)]
    found = [
        trained(
            SFTConfig,
            SFTTrainer,
            tmp_path,
            rows,
            max_steps=6,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_tokens_per_batch=budget,
            train_sampling_strategy="sequential",
        )
        for size, steps, budget in shapes
    ]
    for other in found[1:]:
        assert logged(other, "loss") == pytest.approx(logged(found[0], "loss"), abs=1e-5)
        for (name, a), b in zip(found[0].model.named_parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_rows_in_a_pack_do_not_see_each_other():
    model = tiny_model()
    engine, support = choose_engine(model)
    assert support.exact
    groups = [TokenizedGroup([5, 6], ([7, 8, 9],), (), scored=(((1, 3),),)), TokenizedGroup([9], ([10, 11],), ())]
    with torch.no_grad():
        together = engine(model, pack(groups))
        alone = [engine(model, pack([group])) for group in groups]
    torch.testing.assert_close(together.token_logps_T, torch.cat([one.token_logps_T for one in alone]))
    assert together.hit_T is not None
    assert together.hit_T.tolist() == [hit for one in alone for hit in one.hit_T.tolist()]


def test_the_whole_run_is_recorded(tmp_path):
    trainer = SFTTrainer(
        model=tiny_model(),
        args=config(SFTConfig, tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, logging_steps=2),
        train_dataset=conversations(16),
        eval_dataset={"a": conversations(3), "b": texts(2)},
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    trainer.save_model()
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["method"], run["outcome"]) == ("sft", "finished")
    assert run["data"]["train"]["groups"] == 16
    assert "reference" not in run
    assert set(json.loads((tmp_path / "audit.json").read_text())) == {"train", "eval_a", "eval_b"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = next(line for line in lines if "loss" in line)
    assert {"mean_token_accuracy", "rows_per_second", "tokens_per_second", "memory/peak_gb"} <= set(training)
    assert any("eval_a_mean_token_accuracy" in line for line in lines)
    assert "fine-tuned on demonstrations" in (tmp_path / "README.md").read_text()
    predictions = trainer.predict(conversations(3)).predictions
    assert predictions.shape == (sum(trainer.items(group) for group in trainer.eval_dataset["a"]), 1)


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    save_tiny(tmp_path)
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-2}

    def run(folder: str, **more: Any) -> Any:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(tmp_path),
            args=config(SFTConfig, tmp_path / folder, **options),
            train_dataset=demonstrations(40),
            processing_class=tiny_tokenizer(),
        )
        trainer.train(**more)
        return trainer

    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_a_tokenizer_without_template_gets_one_that_is_saved(tmp_path, caplog):
    caplog.set_level("INFO", logger="preftune")
    tokenizer = tiny_tokenizer(chat=False)
    trainer = SFTTrainer(
        model=tiny_model(),
        args=config(SFTConfig, tmp_path, max_steps=1),
        train_dataset=conversations(8),
        processing_class=tokenizer,
    )
    assert any(line.startswith("the tokenizer has no chat template") for line in caplog.messages)
    assert trainer.processing_class.chat_template
    trainer.save_model()
    assert (tmp_path / "chat_template.jinja").is_file()


# --- NEFTune ---


def test_noise_is_as_large_as_for_each_sequence_alone():
    """Longest noise is alpha / sqrt(length * width), of the token's own sequence and not of the row."""
    model = tiny_model().train()
    embedding = model.get_input_embeddings()
    groups = [TokenizedGroup([5], ([7] * 3,), ()), TokenizedGroup([9] * 40, ([10] * 60,), ())]
    batch = pack(groups)
    from preftune.logps.head import LogitTransform

    with (
        noisy_embeddings(model, 5.0),
        scoring(ScoringRequest(batch.predict_T, batch.target_T, batch.layout, LogitTransform())),
    ):
        plain = embedding.weight[batch.input_ids]
        noise = (embedding(batch.input_ids) - plain)[0].abs().detach()
        assert lengths_of(plain).tolist() == [4.0] * 4 + [100.0] * 100
    width = plain.shape[-1]
    short, long = noise[:4].max(), noise[4:].max()
    assert 0.9 < float(short) / (5 / (4 * width) ** 0.5) <= 1.0
    assert 0.9 < float(long) / (5 / (100 * width) ** 0.5) <= 1.0
    assert torch.equal(embedding(batch.input_ids), plain)  # over


def test_noise_is_in_training_only_and_changes_it(tmp_path):
    save_tiny(tmp_path)
    plain, noisy, again = (
        trained(SFTConfig, SFTTrainer, tmp_path, demonstrations(32), max_steps=4, neftune_noise_alpha=alpha)
        for alpha in (None, 5.0, 5.0)
    )
    assert logged(noisy, "loss") != logged(plain, "loss")
    assert logged(noisy, "loss") == logged(again, "loss")
    with torch.no_grad():
        assert plain.evaluate(demonstrations(4)) is not None
        first, second = (noisy.evaluate(demonstrations(4))["eval_loss"] for _ in range(2))
    assert first == second


# --- the configuration ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packing": True}, "rows are always packed"),
        ({"eval_packing": True}, "rows are always packed"),
        ({"loss_type": "dft"}, "one loss"),
        ({"neftune_noise_alpha": -1.0}, "must be a finite number above 0"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"eos_token": "nope"}, "is not a token of the tokenizer"),
        ({"chat_template_path": "gone.jinja"}, "is not a file"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        SFTTrainer(
            model=tiny_model(),
            args=config(SFTConfig, tmp_path, **options),
            train_dataset=conversations(8),
            processing_class=tiny_tokenizer(),
        )


def test_learning_rates(tmp_path):
    rates = []
    for peft in (None, LoraConfig(r=2, target_modules="all-linear")):
        trainer = SFTTrainer(
            model=tiny_model(),
            args=config(SFTConfig, tmp_path, learning_rate=None),
            train_dataset=conversations(8),
            processing_class=tiny_tokenizer(),
            peft_config=peft,
        )
        rates.append(trainer.args.learning_rate)
    assert rates == [2e-5, 2e-4]
