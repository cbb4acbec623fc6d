"""Short runs of `PPOTrainer` on tiny models, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from preftune.training.ppo import PPOConfig, PPOTrainer
from tiny import tiny_model, tiny_tokenizer

PROMPTS = [{"prompt": f"{word}: "} for word in ("tell", "say", "sing", "why", "how", "more", "less", "go")]


def config(folder: Path, **options: Any) -> PPOConfig:
    """Two rounds of four answers, each one epoch of two steps."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
        "max_steps": 4,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return PPOConfig(**{**settings, **options})


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})


def letters_and_noise(prompt: Any, answer: str, row: Any) -> float:
    """Different for every answer, so that there is always something to run after."""
    return sum(ord(letter) % 7 for letter in answer) / 7


def trainer(
    folder: Path, model: Any = None, *, reward: Any = letters_and_noise, data: Any = None, **options: Any
) -> PPOTrainer:
    """A trainer; options are its own arguments where it has them, and fields of the config otherwise."""
    own = ("ref_model", "peft_config", "callbacks", "optimizers", "processing_class", "sampler")
    arguments = {name: options.pop(name) for name in own if name in options}
    arguments.setdefault("processing_class", tiny_tokenizer())
    arguments.setdefault("peft_config", lora())
    torch.manual_seed(0)
    return PPOTrainer(
        tiny_model() if model is None else model,
        config(folder, **options),
        PROMPTS if data is None else data,
        reward=reward,
        **arguments,
    )


def logged(folder: Path) -> list[dict[str, Any]]:
    """The training lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
