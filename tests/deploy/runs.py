"""Runs as training leaves them, made without training: an adapter or a whole model with run.json and a card."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from tests.models.tiny import tiny_llama, tiny_tokenizer

ENDS = [2]


def save_base(folder: Path, *, tokenizer: Any = None, **options: Any) -> Path:
    """A base model with its tokenizer and the token that ends its answers."""
    model = tiny_llama(**options)
    model.generation_config = GenerationConfig(eos_token_id=ENDS, bos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# base\n", encoding="utf-8")
    return folder


def save_run(folder: Path, base: Path, *, seed: int = 1, size: float = 0.2, full: bool = False, **options: Any) -> Path:
    """A run on a base.

    Args:
        size: of the update.
        options: of `LoraConfig`.
    """
    from preftune.models import load_model, load_tokenizer

    model: Any = load_model(base)
    generator = torch.Generator().manual_seed(seed)
    if not full:
        torch.manual_seed(0)
        with warnings.catch_warnings():  # of PEFT, about a head that was tied
            warnings.simplefilter("ignore")
            model = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": "all-linear", **options}))
    for name, parameter in model.named_parameters():
        if full or "lora_B" in name or ".modules_to_save." in name:
            parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    GenerationConfig(eos_token_id=ENDS, bos_token_id=1, pad_token_id=0).save_pretrained(folder)
    facts = {"id": f"run-{seed}", "method": "dpo", "model": {"name": str(base), "full_fine_tuning": full}}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    card = f"---\ntags:\n- dpo\n---\n\n# run\n\n`{base}` aligned with DPO.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder
