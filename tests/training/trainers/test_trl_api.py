"""What programs written for TRL ask of a trainer, under TRL's names."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, DatasetDict

import preftune
from preftune import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from preftune.errors import ConfigError
from preftune.logps import pack
from tests.training.dpo_runs import logged, lora_model, trainer
from tiny import chat_rows, rows, tiny_model, tiny_tokenizer


def test_the_reference_model_is_none_or_what_was_given(tmp_path):
    assert trainer(lora_model(), tmp_path / "a").ref_model is None
    other = tiny_model()
    run = trainer(lora_model(), tmp_path / "b", ref_model=other)
    assert run.ref_model is other
    run.train()
    assert run.ref_model is other


def test_arguments_in_the_place_of_the_reference_model_are_named(tmp_path):
    args = DPOConfig(output_dir=str(tmp_path), report_to=[])
    with pytest.raises(ConfigError, match="ref_model is a DPOConfig, not a model"):
        DPOTrainer(lora_model(), args, train_dataset=rows(4), processing_class=tiny_tokenizer())


def test_prepared_rows_are_subscripted_by_trls_names(tmp_path):
    run = trainer(lora_model(), tmp_path)
    row, tokenizer = run.train_dataset[0], run.processing_class
    assert [tokenizer.decode(row[name]) for name in row.keys()] == [  # noqa: SIM118
        rows(1)[0]["prompt"],
        rows(1)[0]["chosen"] + "<|im_end|>",
        rows(1)[0]["rejected"] + "<|im_end|>",
    ]
    assert set(dict(row)) == {"prompt_ids", "chosen_ids", "rejected_ids"}
    with pytest.raises(KeyError, match="prompt_ids, chosen_ids, rejected_ids"):
        row["chosen_input_ids"]


def test_prepared_demonstrations_have_input_ids(tmp_path):
    args = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    data = [{"messages": [*row["prompt"], *row["chosen"]]} for row in chat_rows(4)]
    run = SFTTrainer(model=tiny_model(), args=args, train_dataset=data, processing_class=tiny_tokenizer())
    row = run.train_dataset[0]
    assert row["input_ids"] == [*row["prompt_ids"], *row.completions[0]]
    assert "prompt_ids" in row
    assert "chosen_ids" not in row


@pytest.mark.parametrize("kind", ["DPO", "KTO", "SFT", "Reward"])
def test_splits_in_place_of_the_training_rows_are_read_as_train(kind, tmp_path):
    """`load_dataset(...)` without `split=`."""
    data = [{**row, "messages": row["prompt"] + row["chosen"]} for row in chat_rows(8)]
    splits = DatasetDict({"train": Dataset.from_list(data), "test": Dataset.from_list(data[:2])})
    if kind == "SFT":
        splits = splits.select_columns(["messages"])
    made = getattr(preftune, f"{kind}Trainer")(
        tiny_model(),
        args=getattr(preftune, f"{kind}Config")(output_dir=str(tmp_path), use_cpu=True, max_steps=1, report_to="none"),
        train_dataset=splits,
        processing_class=tiny_tokenizer(),
    )
    assert len(made.train_dataset) == 8 * (1 + (kind == "KTO"))


def test_the_missing_dataset_is_said_in_trls_words():
    with pytest.raises(ConfigError, match="`train_dataset` is required"):
        DPOTrainer(model=tiny_model(), processing_class=tiny_tokenizer())


@pytest.mark.parametrize("batch", [1, 4])
def test_token_accuracy_is_the_share_of_all_tokens_of_the_chosen_sides(batch, tmp_path):
    held_out = rows(5, start=40)
    run = trainer(
        lora_model(),
        tmp_path,
        data=rows(4),
        eval_dataset=held_out,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=batch,
        max_steps=1,
        learning_rate=0.0,
    )
    run.train()
    found = run.evaluate()["eval_mean_token_accuracy"]
    for data, value in ((run.train_dataset, logged(run, "mean_token_accuracy")[0]), (run.eval_dataset, found)):
        right = total = 0
        for group in data:
            chosen = group.completions[group.pairs[0].chosen]
            with torch.no_grad():
                logits = run.model(input_ids=torch.tensor([[*group.prompt_ids, *chosen]])).logits[0]
            likeliest = logits[len(group.prompt_ids) - 1 : -1].argmax(-1)
            right += int((likeliest == torch.tensor(chosen)).sum())
            total += len(chosen)
        assert value == pytest.approx(right / total, abs=1e-6)
    assert pack([run.train_dataset[0]]).pairs == 1
    assert "chosen_hits" not in run.state.log_history[0]
