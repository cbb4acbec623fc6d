"""Programs in the shapes of TRL's documentation, one for each trainer, with the import changed: model and tokenizer
loaded by hand or by name, the trainer with or without a configuration, datasets of the library `datasets`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import preftune
from tiny import chat_rows, rows, save_tiny

COMMON = {"max_steps": 2, "use_cpu": True, "report_to": "none", "logging_steps": 1}


@pytest.fixture
def model_name(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "Qwen2-0.5B-Instruct")


def split(folder: Path, made: list[dict[str, Any]]) -> Any:
    """As `load_dataset(name, split="train")` gives it."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return load_dataset(str(folder), split="train")


def unpaired(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in made for side in ("chosen", "rejected")
    ]  # fmt: skip


def finished(trainer: Any) -> None:
    assert trainer.state.global_step == 2
    assert [line for line in trainer.state.log_history if "loss" in line]
    assert (Path(trainer.args.output_dir) / "run.json").exists()


@pytest.mark.sample(4)
@pytest.mark.parametrize("made", [rows, chat_rows], ids=["standard", "conversational"])
@pytest.mark.parametrize("method", ["DPO", "CPO", "ORPO", "KTO", "BCO", "Reward"])
def test_model_tokenizer_dataset_config_trainer(method, made, model_name, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    train_dataset = split(tmp_path / "data", unpaired(made(8)) if method in ("KTO", "BCO") else made(8))
    config, trainer = getattr(preftune, f"{method}Config"), getattr(preftune, f"{method}Trainer")
    training_args = config(output_dir=f"Qwen2-0.5B-{method}", **COMMON)
    first = model_name if method == "Reward" else model  # of a reward model by name
    trainer = trainer(model=first, args=training_args, processing_class=tokenizer, train_dataset=train_dataset)
    trainer.train()
    finished(trainer)


@pytest.mark.parametrize("method", ["DPO", "CPO", "ORPO", "KTO", "BCO"])
def test_a_model_by_name_with_an_adapter(method, model_name, tmp_path):
    dataset = split(tmp_path / "data", unpaired(rows(8)) if method in ("KTO", "BCO") else rows(8))
    config, trainer = getattr(preftune, f"{method}Config"), getattr(preftune, f"{method}Trainer")
    made = trainer(
        model_name,
        args=config(output_dir="out", model_init_kwargs={"dtype": "float32"}, **COMMON),
        train_dataset=dataset,
        peft_config=LoraConfig(),
    )
    made.train()
    finished(made)
    made.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("method", ["DPO", "KTO", "CPO", "GRPO", "RLOO"])
def test_no_configuration_at_all(method, model_name, tmp_path):
    dataset = Dataset.from_list(unpaired(rows(2)) if method == "KTO" else rows(2))
    more = {"reward_funcs": lambda completions, **_: [0.0] * len(completions)} if method in ("GRPO", "RLOO") else {}
    made = getattr(preftune, f"{method}Trainer")(model=model_name, train_dataset=dataset, **more)
    assert made.args.output_dir == f"runs/{method.lower()}"


def by_tokens(completion_ids, **kwargs):
    """Longer answers, in tokens."""
    return [float(len(ids)) for ids in completion_ids]


def by_format(completions, **kwargs):
    """Answers of a conversation: one assistant's turn each."""
    return [float(turns[0]["role"] == "assistant" and "a" in turns[0]["content"]) for turns in completions]


def by_expected(completions, ground_truth, **kwargs):
    return [float(text.strip() == wanted) for text, wanted in zip(completions, ground_truth, strict=True)]


def of_mathematics(prompts, completions, task, **kwargs):
    return [float(len(text)) if kind == "math" else None for text, kind in zip(completions, task, strict=True)]


def of_programs(prompts, completions, task, **kwargs):
    return [-float(len(text)) if kind == "code" else None for text, kind in zip(completions, task, strict=True)]


PROMPTS = [{"prompt": f"What is {n} + {n}?", "ground_truth": str(2 * n), "task": "math" if n % 2 else "code"}
           for n in range(8)]  # fmt: skip


@pytest.mark.parametrize("rewards", [by_tokens, by_expected, [of_mathematics, of_programs], [by_tokens, by_expected]],
                         ids=["tokens", "column", "tasks", "two"])  # fmt: skip
@pytest.mark.parametrize("method", ["GRPO", "RLOO"])
def test_reward_functions(method, rewards, model_name):
    config, trainer = getattr(preftune, f"{method}Config"), getattr(preftune, f"{method}Trainer")
    training_args = config(
        output_dir=f"Qwen2-0.5B-{method}", per_device_train_batch_size=4, num_generations=2, max_completion_length=4,
        **COMMON,
    )  # fmt: skip
    made = trainer(model=model_name, reward_funcs=rewards, args=training_args, train_dataset=Dataset.from_list(PROMPTS))
    made.train()
    finished(made)
    names = [one.__name__ for one in (rewards if isinstance(rewards, list) else [rewards])]
    logged = made.state.log_history[0]
    assert {f"rewards/{name}/mean" for name in names} <= logged.keys()


def test_a_reward_function_of_conversations(model_name):
    asked = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS]
    args = preftune.GRPOConfig(
        output_dir="out", per_device_train_batch_size=4, num_generations=2, max_completion_length=4, **COMMON
    )
    made = preftune.GRPOTrainer(
        model=model_name, reward_funcs=by_format, args=args, train_dataset=Dataset.from_list(asked)
    )
    made.train()
    finished(made)


@pytest.mark.parametrize("method", ["OnlineDPO", "XPO", "NashMD"])
def test_a_reward_model_in_memory_says_which_answer_is_better(method, model_name):
    """The program of the XPO and Nash-MD pages of TRL 1.10, where the reward model has the policy's tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    reward_model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=1)
    config, trainer = getattr(preftune, f"{method}Config"), getattr(preftune, f"{method}Trainer")
    training_args = config(output_dir=f"Qwen2-0.5B-{method}", max_new_tokens=4, **COMMON)
    made = trainer(
        model=model, reward_funcs=reward_model, args=training_args, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in PROMPTS]),
    )  # fmt: skip
    made.train()
    finished(made)


def test_sft_of_a_model_by_name(model_name, tmp_path):
    made = preftune.SFTTrainer(
        model=model_name,
        args=preftune.SFTConfig(output_dir="out", **COMMON),
        train_dataset=split(tmp_path / "data", [{"messages": [{"role": "user", "content": "Hi?"},
                                                              {"role": "assistant", "content": "Hello."}]}] * 4),
    )  # fmt: skip
    made.train()
    finished(made)
