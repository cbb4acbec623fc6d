"""KTO, ORPO, SimPO and GRPO beside TRL 1.16, with DPO as the yardstick: the same model, rows, order, LoRA and dtype.

    python benchmarks/methods_vs_trl.py [--methods dpo kto orpo simpo grpo] [--steps 2] [--repeats 1]

Rows have HH's lengths. A step is 4 pairs; of KTO 8 single answers to 8 prompts, half of them bad; of GRPO 8 answers of
at most 32 tokens to 2 prompts, sampling included. Every run is a process of its own, TRL and preftune in turn; TRL has
no activation checkpointing. The losses must agree, except where they cannot (INCOMPARABLE): TRL's trainers of
SimPO and ORPO put a bos token in front that the chat template has already, its ORPO counts the prompt in the
likelihood, and GRPO draws other answers. The result is benchmarks/results/methods_vs_trl.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from children import in_turn, json_of, rows_in_file
from record import RESULTS, largest_loss_difference, provenance, rounded, write_result
from shapes import SHAPES, conversation_rows
from timed_run import Clock, peak_gb

METHODS = ("dpo", "kto", "orpo", "simpo", "grpo")
PAIRS, ANSWERS, LENGTH = 4, 8, 32
TOLERANCE = 1e-3
INCOMPARABLE = {
    "simpo": "TRL puts a second bos token in front",
    "orpo": "TRL's likelihood counts the prompt, and a second bos token",
    "grpo": "answers are drawn",
}


def main() -> int:
    options = arguments()
    if options.child:
        print(json.dumps(run(options)))
        return 0
    from transformers import AutoTokenizer

    from preftune.models import demo_model

    options.model = options.model or demo_model()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    command = f"python benchmarks/methods_vs_trl.py --steps {options.steps} --repeats {options.repeats}"
    methods: dict[str, Any] = {}
    for method in options.methods:
        rows = rows_of(method, conversation_rows(SHAPES["hh"], tokenizer, 2 * PAIRS * options.steps), options.steps)
        methods[method] = compared(method, both(method, rows, options))
        result = {"benchmark": "methods_vs_trl", "methods": methods, **provenance(command)}
        write_result(rounded(result, 6), RESULTS, "methods_vs_trl")
    return int(not all(found.get("same_work", True) for found in methods.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--model", help="a folder with safetensors (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--child", nargs=3, metavar=("LIBRARY", "METHOD", "ROWS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def rows_of(method: str, conversations: Sequence[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """The rows of all steps, in the method's form."""
    if method == "kto":
        return [
            {"prompt": row["prompt"], "completion": row["rejected" if n % 2 else "chosen"], "label": n % 2 == 0}
            for n, row in enumerate(conversations)
        ]
    if method == "grpo":
        return [{"prompt": row["prompt"]} for row in conversations[: steps * PAIRS // 2]]
    return list(conversations[: steps * PAIRS])


def both(method: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The runs of both libraries, in turn, each in a process of its own. Raises: ChildError."""
    with rows_in_file(rows) as (file, folder):

        def one(library: str, repeat: int) -> dict[str, Any]:
            words = ["--child", library, method, str(file), "--model", str(options.model)]
            cache = {"PREFTUNE_CACHE": str(folder / str(repeat))}
            found = json_of("methods_vs_trl.py", [*words, "--steps", str(options.steps)], cache)
            figures = f"{found['seconds']:.1f} s, {found['peak_gb']:.2f} GB, losses {found['losses']}"
            print(f"{method} {library}: {figures}", flush=True)
            return found

        return in_turn(("trl", "preftune"), options.repeats, one)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and say what the loop took, from the first step's beginning to the last one's end, and any pass before."""
    library, method, rows = options.child
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = make_trainer(library, method, Path(rows), options, folder)
        clock = Clock("cpu", "float32")
        trainer.add_callback(clock)
        began = time.perf_counter()
        trainer.train()
    first, last = clock.steps[0][0], clock.steps[-1][1]
    # sampling of a first round, and preftune's pass over the rows with full weights, come before the first step
    before = first - began if method == "grpo" else 0.0
    return {
        "seconds": last - first - clock.between_seconds + before,
        "peak_gb": peak_gb(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "matrix_gflops": statistics.median(clock.rates),
    }


def make_trainer(library: str, method: str, rows: Path, options: argparse.Namespace, folder: str) -> Any:
    import importlib

    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    name = {"simpo": "CPO"}.get(method, method.upper())
    moved = library == "trl" and method in ("orpo", "simpo")
    package = importlib.import_module(f"trl.experimental.{name.lower()}" if moved else library)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    set_seed(0)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": ANSWERS if method in ("kto", "grpo") else PAIRS, "max_steps": options.steps,
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "logging_steps": 1, "bf16": False, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 0, "gradient_checkpointing": False,
    }  # fmt: skip
    if method != "grpo":
        chosen |= {
            "beta": 2.0 if method == "simpo" else 0.1,
            "max_length": None,
            "train_sampling_strategy": "sequential",
        }
    if moved:
        chosen["max_length"] = 4096
    chosen |= {
        "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5},
        "grpo": {"num_generations": 4, "max_completion_length": LENGTH, "beta": 0.04},
    }.get(method, {})
    given: dict[str, Any] = {"reward_funcs": by_length} if method == "grpo" else {}
    return getattr(package, f"{name}Trainer")(
        model=model,
        args=getattr(package, f"{name}Config")(output_dir=folder, **chosen),
        train_dataset=Dataset.from_list([json.loads(line) for line in rows.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        **given,
    )


def by_length(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def compared(method: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ratios."""
    sides = {
        library: {
            "seconds": statistics.median(one["seconds"] for one in of_library),
            "peak_gb": statistics.median(one["peak_gb"] for one in of_library),
            "runs": of_library,
        }
        for library, of_library in runs.items()
    }
    found: dict[str, Any] = {
        **sides,
        "time": sides["trl"]["seconds"] / sides["preftune"]["seconds"],
        "memory": sides["preftune"]["peak_gb"] / sides["trl"]["peak_gb"],
    }
    found["largest_loss_difference"] = largest_loss_difference([*runs["trl"], *runs["preftune"]])
    if method in INCOMPARABLE:
        found["losses_differ_because"] = INCOMPARABLE[method]
    else:
        found["same_work"] = found["largest_loss_difference"] <= TOLERANCE
    print(f"{method}: {found['time']:.2f}x, {found['memory']:.0%} of the memory", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
