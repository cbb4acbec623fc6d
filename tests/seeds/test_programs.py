"""The programs people copy from tutorials, with the import line, the model's name and the dataset changed.

They are kept as text and executed, so that a field or keyword that stops working breaks a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tiny import chat_rows, rows, save_tiny, tiny_tokenizer

# "Beyond SFT": QLoRA on a free T4. transformers 5 takes no load_in_4bit; preftune.load_model does.
QLORA = """
from preftune import DPOConfig, DPOTrainer, load_model
from transformers import AutoTokenizer
from peft import LoraConfig

model = load_model(MODEL, load_in_4bit=True)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
training_args = DPOConfig(
    output_dir=OUTPUT,
    num_train_epochs=1,
    per_device_train_batch_size=2,
    beta=0.1,
    logging_steps=10,
)
lora_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
trainer = DPOTrainer(
    model=model,
    ref_model=None,
    args=training_args,
    train_dataset=train_dataset,
    eval_dataset=eval_dataset,
    peft_config=lora_config,
    processing_class=tokenizer,
)
trainer.train()
metrics = trainer.evaluate()
"""

LORA = QLORA.replace("DPOTrainer, load_model", "DPOTrainer").replace(
    "model = load_model(MODEL, load_in_4bit=True)",
    "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(MODEL)",
)

# The course's chapter: full fine-tuning, with the two limits that TRL has dropped.
COURSE = """
from preftune import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(MODEL)
tokenizer = AutoTokenizer.from_pretrained(MODEL)

training_args = DPOConfig(
    beta=0.1,
    learning_rate=5e-7,
    max_prompt_length=512,
    max_length=1024,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    num_train_epochs=1,
    output_dir=OUTPUT,
)
trainer = DPOTrainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    processing_class=tokenizer,
)
trainer.train()
"""

# The course's exercise.
EXERCISE = """
from preftune import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path=MODEL)
model.config.use_cache = False
tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.eos_token

training_args = DPOConfig(
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    gradient_checkpointing=True,
    learning_rate=5e-5,
    lr_scheduler_type="cosine",
    max_steps=2,
    save_strategy="no",
    logging_steps=1,
    output_dir=OUTPUT,
    warmup_steps=1,
    bf16=True,
    report_to="none",
    remove_unused_columns=False,
    beta=0.1,
    max_prompt_length=1024,
    max_length=1536,
)
trainer = DPOTrainer(
    model=model,
    args=training_args,
    train_dataset=train_dataset,
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model(OUTPUT)
"""


def mixed(count: int, start: int = 0) -> list[dict[str, Any]]:
    """The first document's format: the prompt a string, the sides message lists."""
    return [
        {"prompt": r["prompt"][0]["content"], "chosen": r["chosen"], "rejected": r["rejected"]}
        for r in chat_rows(count, start=start)
    ]


def transcripts(count: int) -> list[dict[str, str]]:
    """Raw transcripts as `load_dataset("Anthropic/hh-rlhf")` gives them: no prompt column."""
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in rows(count)
    ]


def run(program: str, folder: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None) -> Any:
    names: dict[str, Any] = {
        "MODEL": save_tiny(folder / "model", hidden_size=64),
        "OUTPUT": str(folder / "out"),
        "train_dataset": Dataset.from_list(train),
        "eval_dataset": None if held_out is None else Dataset.from_list(held_out),
    }
    exec(compile(program, "program", "exec"), names)
    return names


@pytest.mark.parametrize("program", [QLORA, LORA], ids=["4-bit", "LoRA"])
def test_the_small_gpu_program(program, tmp_path):
    names = run(program, tmp_path, mixed(8), mixed(4, start=8))
    trainer = names["trainer"]
    assert trainer.state.global_step == 4
    assert trainer.args.learning_rate == 5e-6  # none was given, and there is an adapter
    assert trainer.reference.source.description == "the same model with its adapter switched off"
    assert {"eval_rewards/margins", "eval_rewards/accuracies", "eval_loss"} <= set(names["metrics"])


@pytest.mark.parametrize("dataset", [rows, chat_rows, mixed], ids=["standard", "conversational", "mixed"])
def test_the_course_program(dataset, tmp_path):
    trainer = run(COURSE, tmp_path, dataset(20))["trainer"]
    assert trainer.state.global_step == 2
    assert trainer.full


def test_the_course_program_takes_raw_transcripts(tmp_path):
    trainer = run(COURSE, tmp_path, transcripts(20))["trainer"]
    prompt = tiny_tokenizer().decode(trainer.train_dataset[0].prompt_ids)
    assert "apple 0?" in prompt
    assert "Human:" not in prompt  # turns were recognised, and the chat template applied to them


def test_the_exercise(tmp_path):
    trainer = run(EXERCISE, tmp_path, chat_rows(32))["trainer"]
    eos = trainer.processing_class.eos_token_id
    group = trainer.train_dataset[0]
    assert trainer.processing_class.pad_token_id == eos
    assert all(list(completion).count(eos) == 1 for completion in group.completions)  # still trained, exactly once
    assert trainer.precision.bf16
    assert (tmp_path / "out" / "model.safetensors").exists()
