"""The same per-step losses as TRL 1.16: same model, rows, order and seeds, float32, LoRA and full fine-tuning.

    python benchmarks/parity.py [--model FOLDER_OR_ID] [--data PATH] [--steps 20] [--pairs 2] [--out FILE]

Without arguments: SmolLM2-135M-Instruct and the pairs that ship with preftune. Exit code 1 if a loss differs by more
than 1e-4. Prints a line per case and keeps everything in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TOLERANCE = 1e-4


def main() -> int:
    options = arguments()
    from preftune.models import demo_model

    model = options.model or demo_model()
    rows = conversations(options.data, options.steps * options.pairs)
    cases = {}
    for case in ("lora", "full"):
        ours = run("preftune", case, model, rows, options)
        theirs = run("trl", case, model, rows, options)
        worst = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        cases[case] = {"largest_difference": worst, "preftune": ours, "trl": theirs}
        print(
            f"{case}: {options.steps} steps, largest difference of a loss {worst:.2e} (allowed {TOLERANCE:g})",
            flush=True,
        )
    result = {
        "model": Path(model).name,
        "data": Path(options.data).name if options.data else "the pairs that ship with preftune",
        "pairs_per_step": options.pairs,
        "tolerance": TOLERANCE,
        "cases": cases,
        "versions": {name: metadata.version(name) for name in ("preftune", "trl", "torch", "transformers", "peft")},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "date": time.strftime("%Y-%m-%d"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {options.out}")
    return int(any(case["largest_difference"] > TOLERANCE for case in cases.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", help="a file with prompt, chosen and rejected (any format preftune reads)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=2, help="pairs per step")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    return parser.parse_args()


def conversations(path: str | None, count: int) -> list[dict[str, Any]]:
    """The first `count` rows as conversations, which both libraries read alike."""
    from preftune import load_pairs

    if path is None:
        from importlib.resources import files

        path = str(files("preftune.demo").joinpath("pairs.jsonl"))
    pairs = load_pairs(path).as_chat()
    return [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs[:count]]


def run(library: str, case: str, model_name: str, rows: list[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Losses and seconds of one training run; every run starts from the same seeds."""
    import importlib

    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    package = importlib.import_module(library)
    import torch

    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    if case == "lora":
        set_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    with tempfile.TemporaryDirectory() as folder:
        config = package.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=options.pairs,
            max_steps=options.steps,
            logging_steps=1,
            learning_rate=1e-4 if case == "lora" else 1e-6,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = package.DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model_name),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
