"""Short runs of `DPOTrainer` on tiny models, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from preftune import DPOConfig, DPOTrainer
from preftune.logps import naive_logps, pack
from preftune.reference import inference
from tiny import rows, tiny_model, tiny_tokenizer

LN2 = 0.6931471805599453
TIMED = ("time", "_per_second", "_runtime", "_rate_seconds", "useful_tflops", "total_flos", "memory/peak_gb")


def config(folder: Path, **options: Any) -> DPOConfig:
    """Three logged steps of two pairs in the rows' order, fast enough for the policy to move."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return DPOConfig(**{**settings, **options})


def trainer(model: Any, folder: Path, *, data: Any = None, **options: Any) -> DPOTrainer:
    """A trainer; options are its own arguments where it has them, and fields of the config otherwise."""
    own = (
        "ref_model", "eval_dataset", "peft_config", "compute_metrics", "callbacks", "optimizers", "processing_class",
        "optimizer_cls_and_kwargs",
    )  # fmt: skip
    arguments = {name: options.pop(name) for name in own if name in options}
    arguments.setdefault("processing_class", tiny_tokenizer())
    data = rows(8) if data is None else data
    return DPOTrainer(model=model, args=config(folder, **options), train_dataset=data, **arguments)


def lora_config(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options})


def lora_model(model: Any = None, *, trained: bool = False, **options: Any) -> Any:
    """A model with an adapter; `trained` gives it the non-zero weights that supervised fine-tuning would."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model() if model is None else model, lora_config(**options))
    if trained:
        nudge(model, 0.05)
    return model


def nudge(model: Any, size: float) -> None:
    """Move everything that trains."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def naive_scores(model: Any, groups: Any) -> torch.Tensor:
    """What the oracle says of all completions of a dataset."""
    with inference(model):
        return naive_logps(model, pack(list(groups)))


def reference_scores(run: DPOTrainer, groups: Any) -> torch.Tensor:
    """What a run takes for the reference's scores."""
    return run.reference(run.model, pack(list(groups))).token_logps_T


def logged(run: DPOTrainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log records without what the clock and the process decide."""
    return [{k: v for k, v in record.items() if not any(part in k for part in TIMED)} for record in records]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, which must be strict JSON."""
    return [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
