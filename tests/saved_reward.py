"""A reward model on disk, as `RewardTrainer` leaves one: an adapter on a sequence classifier, its head beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from tiny import tiny_tokenizer


def save_reward(folder: Path, base: str, **chosen: Any) -> str:
    """Untrained, but saying something: adapter and head are random numbers."""
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "modules_to_save": ["score"], **chosen}
    model = get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", **options))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
