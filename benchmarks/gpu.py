"""preftune on one GPU, on randomly initialised models of real shapes; beside TRL where TRL is installed.

    python benchmarks/gpu.py                       SmolLM3-3B's and SmolLM2-135M's shape, LoRA and full, and QLoRA
    python benchmarks/gpu.py --shape smollm3-3b --tuning lora [--rows ultrafeedback] [--pairs 16] [--steps 8]
    python benchmarks/gpu.py --shape tiny --device cpu --dtype float32       a smoke test

Weights are random, because neither time nor memory depends on what they are; rows are random tokens with the lengths
of a preference dataset. bfloat16, and everything else as each library chooses it, in two settings: its defaults (both
checkpoint activations on a GPU) and its best (without checkpointing, the fastest of several: preftune plain and with
torch_compile; TRL plain, with Liger kernels and with FlashAttention, as far as they are installed). Every run is a
process of its own, forked from one that has imported the libraries; the first steps, in which kernels are compiled, are
not timed. The reference's pass before full fine-tuning is.

Useful FLOPs are those of `work.py`, the matrix rate is measured in the same run. QLoRA (where bitsandbytes is
installed) trains on pairs of two sequences of 1024 tokens and is about memory alone. Results go to
benchmarks/results/gpu.json (gpu-SHAPE-TUNING.json for one case), or to $OUT where that is set.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import random
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

from forked import in_a_fork
from matrix_rate import matrix_rate
from record import RESULTS, provenance, rounded, write_result
from shapes import SHAPES, SIGMA, PairTokens
from timed_run import LEARNING_RATE, Clock, ReferenceWatch, peak_gb
from work import PASSES, ModelSize, useful_flops

MODELS: dict[str, dict[str, Any]] = {
    "smollm3-3b": {
        "model_type": "smollm3",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "no_rope_layer_interval": 4,
        "max_position_embeddings": 65536,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "smollm3",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "no_rope_layer_interval": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}
SETTINGS = {
    "preftune": ("defaults", "best", "best-compiled"),
    "trl": ("defaults", "best", "best-liger", "best-flash"),
}
_NEEDS = {"best-liger": "liger_kernel", "best-flash": "flash_attn"}
_SPECIAL = 3  # ids below are the made-up tokenizer's own
QLORA_LENGTHS = PairTokens(512, 512, 512)


def main() -> int:
    options = arguments()
    _import_all()
    shapes = [options.shape] if options.shape else ["smollm3-3b", "smollm2-135m"]
    tunings = [options.tuning] if options.tuning else ["lora", "full", "qlora"]
    results = []
    for shape, tuning in ((s, t) for s in shapes for t in tunings if _possible(s, t)):
        results.append(measure(shape, tuning, options))
        keep(results, options)
    return int(
        any("failed" in side for result in results for name, side in result["runs"].items() if "trl" not in name)
    )


def keep(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write what is measured so far."""
    words = [f"--{name} {value}" for name in ("shape", "tuning", "setting") if (value := getattr(options, name))]
    kept = {
        "benchmark": "gpu",
        "cases": results,
        "goals": goals(results) if options.device == "cuda" else {},
        **in_a_fork(provenance, " ".join(["python benchmarks/gpu.py", *words])),
    }
    write_result(rounded(kept), options.out, "-".join(["gpu", *filter(None, (options.shape, options.tuning))]))


def _import_all() -> None:
    """Import what every run needs, once; nothing is computed, as a device in use cannot be forked."""
    for name in ("torch", "transformers", "peft", "datasets", "preftune", "trl"):
        if importlib.util.find_spec(name):
            package = importlib.import_module(name)
            for attribute in ("Trainer", "AutoModelForCausalLM", "get_peft_model", "Dataset", "DPOTrainer"):
                getattr(package, attribute, None)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=MODELS)
    parser.add_argument("--tuning", choices=(*PASSES, "qlora"))
    parser.add_argument("--setting", help="only this one, such as preftune-best; for a look, not for a comparison")
    parser.add_argument("--rows", choices=SHAPES, default="ultrafeedback", help="whose lengths the rows have")
    parser.add_argument("--pairs", type=int, default=16, help="pairs per step")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--steps", type=int, default=8, help="steps that are")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", RESULTS)), help="folder of the result")
    return parser.parse_args(words)


def _possible(shape: str, tuning: str) -> bool:
    return tuning != "qlora" or (shape != "smollm2-135m" and importlib.util.find_spec("bitsandbytes") is not None)


def measure(shape: str, tuning: str, options: argparse.Namespace) -> dict[str, Any]:
    """All runs of one model and way of training."""
    lengths = [QLORA_LENGTHS] * (options.pairs * (options.warmup + options.steps))
    if tuning != "qlora":
        lengths = row_lengths(options.rows, options.pairs * (options.warmup + options.steps))
    case = {
        "shape": shape,
        "tuning": tuning,
        "rows": "1024 tokens" if tuning == "qlora" else options.rows,
        "lengths": lengths,
        "pairs": 1 if tuning == "qlora" else options.pairs,
        "warmup": options.warmup,
        "steps": options.steps,
        "dtype": options.dtype,
        "device": options.device,
    }
    rate = in_a_fork(matrix_rate, options.dtype, options.device)["best"]
    timed = lengths[case["pairs"] * options.warmup : case["pairs"] * (options.warmup + options.steps)]
    passes = PASSES["full" if tuning == "full" else "lora"]
    flops = useful_flops(ModelSize.of(config_of(shape)), timed, passes=passes, reference=1)
    runs = {}
    for library, settings in SETTINGS.items():
        for setting in settings:
            if not _runs(library, setting, tuning) or options.setting not in (None, f"{library}-{setting}"):
                continue
            began = time.perf_counter()
            result = in_a_fork(one_run, {**case, "library": library, "setting": setting})
            if "seconds" in result:
                result["tokens_per_second"] = sum(map(sum, timed)) / result["seconds"]
                result["useful_tflops"] = flops / result["seconds"] / 1e12
                result["share_of_matrix_rate"] = result["useful_tflops"] * 1e3 / rate
            runs[f"{library} {setting}"] = result
            took = time.perf_counter() - began
            print(f"{shape} {tuning}, {library} {setting} ({took:.0f} s): {_said(result)}", flush=True)
    del case["lengths"]
    return {"case": case, "matrix_tflops": rate / 1e3, "useful_flops": flops, "runs": runs, "ratio": ratios(runs)}


def _runs(library: str, setting: str, tuning: str) -> bool:
    if setting == "best-compiled" and tuning == "qlora":
        return False  # nothing that is quantised is compiled, and this case is about memory
    if library == "trl" and (tuning == "qlora" or importlib.util.find_spec("trl") is None):
        return False
    return setting not in _NEEDS or importlib.util.find_spec(_NEEDS[setting]) is not None


def _said(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    return (
        f"{result['tokens_per_second']:.0f} tokens/s, {result['useful_tflops']:.3g} useful TFLOP/s "
        f"({result['share_of_matrix_rate']:.0%} of the matrix rate), {result['peak_gb']:.2f} GB"
    )


def ratios(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """TRL's time over preftune's, both at their defaults and both at their best."""
    found = {}
    for setting in ("defaults", "best"):
        ours, theirs = (_seconds(runs, f"{library} {setting}") for library in ("preftune", "trl"))
        if ours and theirs:
            found[setting] = min(theirs) / min(ours)
    return found


def _seconds(runs: dict[str, dict[str, Any]], beginning: str) -> list[float]:
    return [run["seconds"] for name, run in runs.items() if name.startswith(beginning) and "seconds" in run]


def goals(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What these results say of the goals in `performance_goals.py`: all of them are about the 3B model."""
    found: dict[str, float] = {}
    for result in results:
        case, runs = result["case"], result["runs"]
        if case["shape"] != "smollm3-3b":
            continue
        done = [run for name, run in runs.items() if name.startswith("preftune") and "seconds" in run]
        if case["tuning"] == "qlora" and done:
            found["qlora-3b"] = min(run["peak_gb"] for run in done)
        if case["tuning"] == "lora" and done:
            found["gpu-rate"] = max(run["share_of_matrix_rate"] for run in done)
            found |= {f"gpu-{setting}": ratio for setting, ratio in result["ratio"].items()}
    return found


def row_lengths(rows: str, count: int, *, seed: int = 0) -> list[PairTokens]:
    """Log-normal lengths with the means of a dataset, at most 2048 tokens a sequence."""
    shape, generator = SHAPES[rows], random.Random(seed)

    def length(mean: int) -> int:
        return min(1024, max(4, round(generator.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA))))

    return [PairTokens(length(shape.prompt), length(shape.completion), length(shape.completion)) for _ in range(count)]


def config_of(shape: str) -> Any:
    from transformers import AutoConfig

    values = dict(MODELS[shape])
    return AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=0, bos_token_id=1, eos_token_id=1)


def one_run(case: dict[str, Any]) -> dict[str, Any]:
    """Train in this process: seconds of the timed steps, GB, losses."""
    import torch

    clock = Clock(case["device"])
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the result
            trainer = (preftune_trainer if case["library"] == "preftune" else trl_trainer)(case, folder)
            trainer.add_callback(clock)
            watch = ReferenceWatch(trainer) if case["library"] == "preftune" else None
            trainer.train()
    begins, ends = zip(*clock.steps, strict=True)
    timed = case["steps"] / (case["steps"] + case["warmup"])
    passed = watch.pass_seconds(until=begins[0]) * timed if watch else 0.0
    cuda = case["device"] == "cuda"
    return {
        "seconds": ends[-1] - begins[case["warmup"]] + passed,
        "reference_pass_seconds": passed,
        "median_step_seconds": statistics.median(end - begin for begin, end in clock.steps[case["warmup"] :]),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else peak_gb(),
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if cuda else None,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def random_model(case: dict[str, Any], folder: str, **options: Any) -> Any:
    """Random weights, made where they train; in float32 where they are trained themselves."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    dtype = torch.float32 if case["tuning"] == "full" else getattr(torch, case["dtype"])
    with torch.device(case["device"]):
        model = AutoModelForCausalLM.from_config(config_of(case["shape"]), dtype=dtype, **options)
    if case["tuning"] != "qlora":
        return model
    from preftune.models import load_model

    model.save_pretrained(f"{folder}/model")
    del model
    if case["device"] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return load_model(f"{folder}/model", load_in_4bit=True)


def settings_of(case: dict[str, Any], folder: str) -> dict[str, Any]:
    """What both configurations say."""
    chosen: dict[str, Any] = {
        "output_dir": f"{folder}/run",
        "per_device_train_batch_size": case["pairs"],
        "max_steps": case["warmup"] + case["steps"],
        "learning_rate": LEARNING_RATE["full" if case["tuning"] == "full" else "lora"],
        "lr_scheduler_type": "constant",
        "max_length": None,
        "logging_steps": 1,
        "bf16": case["dtype"] == "bfloat16",
        "use_cpu": case["device"] == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    if case["setting"] != "defaults":
        chosen["gradient_checkpointing"] = False
    if case["setting"] == "best-compiled":
        chosen["torch_compile"] = True
    return chosen


def adapter(case: dict[str, Any]) -> Any:
    if case["tuning"] == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def tokenizer() -> Any:
    """Trainers want one; the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def token_rows(case: dict[str, Any]) -> list[list[list[int]]]:
    """Prompt, chosen and rejected of every row, the same for both libraries."""
    generator, vocabulary = random.Random(1), MODELS[case["shape"]]["vocab_size"]
    return [[[generator.randrange(_SPECIAL, vocabulary) for _ in range(n)] for n in row] for row in case["lengths"]]


def preftune_trainer(case: dict[str, Any], folder: str) -> Any:
    from preftune import DPOConfig, DPOTrainer
    from preftune.data import GroupDataset
    from preftune.types import Preference, TokenizedGroup

    groups = (
        TokenizedGroup(prompt, (chosen, rejected), (Preference(0, 1),), id=str(row))
        for row, (prompt, chosen, rejected) in enumerate(token_rows(case))
    )
    return DPOTrainer(
        model=random_model(case, folder),
        args=DPOConfig(**settings_of(case, folder), train_sampling_strategy="sequential"),
        train_dataset=GroupDataset.from_groups(groups),
        processing_class=tokenizer(),
        peft_config=adapter(case),
    )


def trl_trainer(case: dict[str, Any], folder: str) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class TokensAlready(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    columns = zip(*token_rows(case), strict=True)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    flash = {"attn_implementation": "flash_attention_2"} if case["setting"] == "best-flash" else {}
    liger = {"use_liger_kernel": True} if case["setting"] == "best-liger" else {}
    return TokensAlready(
        model=random_model(case, folder, **flash),
        # TRL loads a second model by the name of the first, which has none here
        ref_model=random_model(case, folder, **flash) if case["tuning"] == "full" else None,
        args=DPOConfig(**settings_of(case, folder), train_sampling_strategy="sequential", **liger),
        train_dataset=Dataset.from_dict(dict(zip(names, map(list, columns), strict=True))),
        processing_class=tokenizer(),
        peft_config=adapter(case),
    )


if __name__ == "__main__":
    sys.exit(main())
