"""KTO runs of tiny models; as a script one rank of two processes. Writes what it saw to FOLDER/rank{n}.pt.

Usage: one_of_two_kto_ranks.py FOLDER, with the environment that torchrun sets.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

import preftune
from tiny import rows, save_tiny, tiny_tokenizer

STEPS = 12


def answers(count: int) -> list[dict[str, Any]]:
    """Two good answers, then a bad one; good ones are long, so that the baseline rises above 0."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if n % 3 == 2 else "rejected"], "label": n % 3 != 2}
        for n, row in enumerate(rows(count))
    ]


def options_for(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": STEPS, "logging_steps": 1,
        "learning_rate": 1e-2, "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "seed": 3, "train_sampling_strategy": "sequential", **options,
    }  # fmt: skip


def made(
    folder: Path, *, library: Any = preftune, method: str = "KTO", lora: bool = True, data: Any = None, **options: Any
) -> Any:
    model = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "model"))
    if lora:
        set_seed(11)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    return getattr(library, f"{method}Trainer")(
        model=model,
        args=getattr(library, f"{method}Config")(**options_for(folder / library.__name__, **options)),
        train_dataset=Dataset.from_list(answers(48) if data is None else data),
        processing_class=tiny_tokenizer(),
    )


def history(trainer: Any, name: str = "loss") -> list[float]:
    if not trainer.state.log_history:
        trainer.train()
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    trainer = made(folder / f"rank{rank}", per_device_train_batch_size=2)
    seen = {"loss": history(trainer), "kl": history(trainer, "kl")}
    weights = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    seen["eval_kl"] = [trainer.evaluate(trainer.train_dataset)["eval_kl"]]
    singly = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "output_dir": str(folder / f"{rank}")}
    seen["accumulated_kl"] = history(made(folder / f"rank{rank}", **singly), "kl")
    torch.save({"weights": weights, **seen}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
