"""Models, rows and settings for the tests of plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from models_zoo import random_model
from preftune.models.precision import Precision, decide_precision
from preftune.plan.devices import Device
from preftune.plan.settings import Settings
from preftune.plan.workload import MicroBatch, RowLengths, Workload
from preftune.types import Preference, TokenizedGroup

CPU = Device("cpu", "cpu", 16 * 10**9, 1e11, None, rate_from="a test")
HALF = Precision(torch.bfloat16, torch.bfloat16, False, "a test")


def model(name: str = "llama", *, lora: bool, dropout: float = 0.0, layers: int = 3, **options: Any) -> Any:
    made = random_model(name, hidden_size=64, intermediate_size=176, num_hidden_layers=layers, **options)
    if not lora:
        return made
    return get_peft_model(
        made, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=dropout)
    )


def groups() -> list[TokenizedGroup]:
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 60, (count,), generator=draw).tolist()

    return [TokenizedGroup(ids(40), (ids(30), ids(26)), (Preference(0, 1),), str(i)) for i in range(2)]


def batch_of(rows: list[TokenizedGroup]) -> MicroBatch:
    return MicroBatch.of([RowLengths.of(group) for group in rows])


def settings(device: Device = CPU, *, bf16: bool = False, **options: Any) -> Settings:
    chosen: dict[str, Any] = {
        "command": "dpo",
        "device": device,
        "precision": HALF if bf16 else decide_precision(bf16=False),
        "checkpointing": False,
        "reference": "adapter off",
    }
    return Settings(**(chosen | options))


def workload(rows: int = 1000, *, prompt: int = 100, completion: int = 100, per_step: int = 8) -> Workload:
    one = RowLengths(prompt, (completion, completion), 2 * completion, 2 * (prompt + completion))
    return Workload(
        unit="pair",
        rows=rows,
        rows_per_step=per_step,
        steps=rows // per_step,
        epochs=1.0,
        sampled=MicroBatch.of([one]),
        sample=1,
        tokens=rows * one.tokens,
        separate_tokens=rows * one.separate,
        largest=MicroBatch.of([one] * per_step),
        micro_batches=1,
        smallest_possible=MicroBatch.of([one]),
        budget=None,
    )


def smaller(device: Device, memory: float) -> Device:
    return replace(device, memory=round(memory))
