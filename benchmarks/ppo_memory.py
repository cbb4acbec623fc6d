"""How many models does PPO hold? One base with adapters for every role, beside a model for each role.

    python benchmarks/ppo_memory.py [--model FOLDER] [--answers 4] [--tokens 16]

Three kinds of runs, each in a process of its own: the model alone with one forward pass; PPO with policy, value and
reward as adapters on one base, the reference being the adapters off; PPO with a model each for policy, reference and
reward (the value is an adapter). Measured are the weights that are alive (every parameter once), and the peak of the
resident memory above what Python and its libraries took before the model was loaded. Goal: one base with its three
adapters of rank 16 (11% of so small a model) weighs at most 1.15 times the model, three models between 2.9 and 3.2
times. Exit code 1 if that is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from record import RESULTS, provenance, rounded, write_result

KINDS = ("model_alone", "one_base", "three_models")
GOALS = {"one_base": (1.0, 1.15), "three_models": (2.9, 3.2)}


def main() -> int:
    options = arguments()
    if options.child:
        print(json.dumps(one_run(options)))
        return 0
    from preftune.models import demo_model

    options.model = options.model or demo_model()
    with tempfile.TemporaryDirectory() as folder:
        make_reward_models(options.model, Path(folder))
        runs = {kind: in_child(options, kind, folder) for kind in KINDS}
    alone = runs["model_alone"]["weights_gb"]
    models = {kind: runs[kind]["weights_gb"] / alone for kind in GOALS}
    missed = [kind for kind, (low, high) in GOALS.items() if not low <= models[kind] <= high]
    for kind, run in runs.items():
        count = f", {models[kind]:.2f} times the model's weights" if kind in models else ""
        print(f"  {kind}: weights {run['weights_gb']:.3f} GB{count}; peak {run['peak_gb']:.3f} GB")
    words = f"python benchmarks/ppo_memory.py --answers {options.answers} --tokens {options.tokens}"
    result = {
        "benchmark": "ppo_memory",
        "case": {
            "model": Path(options.model).name,
            "dtype": "float32",
            "tuning": "lora",
            "answers_per_round": options.answers,
            "tokens_per_answer": options.tokens,
        },
        "models_in_memory": models,
        "goals": {kind: list(goal) for kind, goal in GOALS.items()},
        "reached": not missed,
        "runs": runs,
        **provenance(words),
    }
    write_result(rounded(result, 6), options.out, "ppo_memory")
    return int(bool(missed))


def in_child(options: argparse.Namespace, kind: str, folder: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--child", kind, "--folder", folder, "--model", options.model]
    words += ["--answers", str(options.answers), "--tokens", str(options.tokens)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_reward_models(model: str, folder: Path) -> None:
    """An untrained reward model as an adapter on the base, and as a model of its own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype="float32")
    classifier.config.pad_token_id = 0
    classifier.save_pretrained(folder / "whole")
    config = LoraConfig(
        task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"]
    )
    get_peft_model(classifier, config).save_pretrained(folder / "adapter")
    for name in ("whole", "adapter"):
        AutoTokenizer.from_pretrained(model).save_pretrained(folder / name)


def one_run(options: argparse.Namespace) -> dict[str, float]:
    import torch
    from peft import LoraConfig

    from preftune import PPOConfig, PPOTrainer, load_model

    PPOTrainer.__name__  # noqa: B018  everything is imported before the model comes
    before = resident()
    if options.child == "model_alone":
        model = load_model(options.model, dtype="float32")
        with torch.no_grad():
            model(input_ids=torch.arange(64)[None])
        return {"weights_gb": weights(), "peak_gb": peak() - before}
    shared = options.child == "one_base"
    config = PPOConfig(
        output_dir=f"{options.folder}/run-{options.child}",
        reward_model=[f"{options.folder}/{'adapter' if shared else 'whole'}"],
        per_device_train_batch_size=max(1, options.answers // 2),
        num_mini_batches=2,
        num_ppo_epochs=1,
        max_steps=2,
        max_new_tokens=options.tokens,
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    prompts = [{"prompt": [{"role": "user", "content": f"Name {count} things."}]} for count in range(2, 18)]
    trainer = PPOTrainer(
        options.model,
        config,
        prompts,
        ref_model=None if shared else load_model(options.model, dtype="float32"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    return {"weights_gb": weights(), "peak_gb": peak() - before}


def weights() -> float:
    """GB of all parameters that are alive, each storage once."""
    import torch

    seen = {p.data_ptr(): p.nbytes for p in gc.get_objects() if isinstance(p, torch.nn.Parameter) and p.numel()}
    return sum(seen.values()) / 2**30


def resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**30


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder with safetensors (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--answers", type=int, default=4, help="per round")
    parser.add_argument("--tokens", type=int, default=16, help="of the longest answer")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
