"""Tiny runs that the five errors are met in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from preftune import DPOConfig, DPOTrainer
from tiny import rows, tiny_model, tiny_tokenizer

LN2 = 0.6931471805599453


def make(model: Any, folder: Path, *, data: Any = None, **options: Any) -> DPOTrainer:
    """A trainer of one step of two pairs; options are the trainer's where it has them, else the config's."""
    own = {name: options.pop(name) for name in ("ref_model", "peft_config", "eval_dataset") if name in options}
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "disable_tqdm": True,
        **options,
    }
    return DPOTrainer(
        model,
        args=DPOConfig(**settings),
        train_dataset=rows(8) if data is None else data,
        processing_class=tiny_tokenizer(),
        **own,
    )


def first_loss(trainer: DPOTrainer) -> float:
    """Trains, and returns the loss of the first step, at which policy and reference are still the same."""
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})


def nudge(model: nn.Module, size: float = 0.05) -> nn.Module:
    """What training does: everything that trains has moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def sft_adapter(model: Any = None) -> Any:
    """A model that arrives with a trained adapter."""
    return nudge(get_peft_model(tiny_model() if model is None else model, lora()))
