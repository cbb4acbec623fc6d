"""Is the plan right? Forecasts of `preftune plan` beside what the training then takes, on a CPU.

    python benchmarks/plan_memory.py [--case dpo-lora-float32] [--small]

Eight trainings of a random model of 54 million parameters (`--small`: 26 million, for the tests), each in processes of
its own: first `preftune plan ... --device this --json` (whose two measured steps give the time), then the training. The
peak is that of the resident memory of the training's process, Python and its libraries included; the time is that of
all steps, with the reference's pass before them. One thread, and seconds of the processor: other programs on the
machine do not count. Goal: memory within 15%, time within 25%. Exit code 1 if it is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from record import RESULTS, provenance, rounded, write_result
from timed_run import Clock, ReferenceWatch, peak_gb, resident_gb

MEMORY, TIME = 0.15, 0.25
"""Largest error of a forecast, as a share of what was measured."""
SHAPES = {
    False: {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 8},
    True: {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
VOCABULARY = {False: 16384, True: 8192}
ROWS = {"long": (300, 500), "short": (60, 100)}
"""Mean tokens of a prompt and of an answer."""


class Case(NamedTuple):
    """One training."""

    command: str
    tuning: str
    dtype: str
    checkpointing: bool
    rows: str
    tokens: int
    """Computed at a time."""
    steps: int = 2
    batch: int = 4

    @property
    def name(self) -> str:
        parts = [self.command, self.tuning, self.dtype, "checkpointing" * self.checkpointing, self.rows]
        return "-".join(filter(None, parts))

    def words(self, model: Path, data: Path) -> list[str]:
        """The flags of the training."""
        words = ["--model", str(model), "--data", str(data), "--max_steps", str(self.steps)]
        words += ["--per_device_train_batch_size", str(self.batch), "--max_tokens_per_batch", str(self.tokens)]
        words += ["--gradient_checkpointing", str(self.checkpointing).lower(), "--logging_steps", "1"]
        words += ["--bf16", str(self.dtype == "bfloat16").lower(), "--max_length", "2048"]
        return [*words, *(["--use_peft"] if self.tuning == "lora" else [])]


CASES = (
    Case("dpo", "lora", "float32", False, "long", 2560, batch=2),
    Case("dpo", "lora", "float32", True, "long", 4096, batch=3),
    Case("dpo", "lora", "bfloat16", False, "long", 2560, batch=2),
    Case("dpo", "full", "float32", False, "short", 1536, batch=6),
    Case("dpo", "full", "bfloat16", True, "long", 4096, batch=3),
    Case("sft", "lora", "float32", False, "short", 1536, batch=9),
    Case("kto", "lora", "bfloat16", False, "long", 2560, batch=3),
    Case("sft", "full", "float32", False, "long", 2560, batch=3),
)
IN_TESTS = ("dpo-lora-float32-long", "sft-full-float32-long")


def main() -> int:
    options = arguments()
    if options.train or options.forecast:
        time.perf_counter = time.process_time  # before anything is timed
        if options.forecast:
            return forecast(options)
        print(json.dumps(train(options)))
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "model", small=options.small)
        for case in CASES:
            if options.case in (None, case.name):
                results[case.name] = compared(case, model, Path(folder))
                print(f"{case.name}: {said(results[case.name])}", flush=True)
    missed = [name for name, result in results.items() if not result["reached"]]
    kept = {
        "benchmark": "plan_memory",
        "goal": {"memory": MEMORY, "time": TIME},
        "cases": results,
        "reached": not missed,
        **provenance("python benchmarks/plan_memory.py"),
    }
    if options.case is None and not options.small:
        write_result(rounded(kept, 4), options.out, "plan_memory")
    return int(bool(missed))


def compared(case: Case, model: Path, folder: Path) -> dict[str, Any]:
    """Forecast and measurement of one case."""
    data = folder / f"{case.name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(case)), encoding="utf-8")
    words = case.words(model, data)
    cache = {**os.environ, "PREFTUNE_CACHE": str(folder / f"cache-{case.name}")}
    planned = _json(["--forecast", case.command, "--words", json.dumps(words)], cache)
    measured = _json(["--train", case.command, "--words", json.dumps(words)], cache)
    memory, seconds = planned["memory"]["total_bytes"] / 1e9, planned["time"]["seconds"]
    result = {
        "memory_gb": {"forecast": memory, "measured": measured["peak_gb"], "before_training": measured["base_gb"]},
        "memory_error": memory / measured["peak_gb"] - 1,
        "seconds": {"forecast": seconds, "measured": measured["seconds"]},
        "time_error": seconds / measured["seconds"] - 1,
        "lines_gb": {name: count / 1e9 for name, count in planned["memory"]["per_rank"].items()},
        "tokens_at_a_time": planned["data"]["largest_micro_batch"]["tokens"],
    }
    return {**result, "reached": abs(result["memory_error"]) <= MEMORY and abs(result["time_error"]) <= TIME}


def said(result: dict[str, Any]) -> str:
    memory, seconds = result["memory_gb"], result["seconds"]
    return (
        f"{memory['forecast']:.2f} GB forecast, {memory['measured']:.2f} measured ({result['memory_error']:+.1%}); "
        f"{seconds['forecast']:.1f} s forecast, {seconds['measured']:.1f} measured ({result['time_error']:+.1%})"
    )


def forecast(options: argparse.Namespace) -> int:
    """`preftune plan` as it is typed."""
    from preftune.cli.main import main as preftune

    return preftune(["plan", options.forecast, *json.loads(options.words), "--device", "this", "--json"])


def train(options: argparse.Namespace) -> dict[str, float]:
    """The training itself, as the command sets it up."""
    from importlib import import_module

    from preftune.cli.train import train_command

    method = import_module(f"preftune.cli.train.{options.train}").METHOD
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = [*json.loads(options.words), "--output_dir", folder, "--save_strategy", "no", "--report_to", "none"]
        words += ["--guard", "off"] if method.guarded else []
        import preftune.training.trainers.kto
        import preftune.training.trainers.sft  # noqa: F401  everything is imported before the model comes

        base = resident_gb()
        with contextlib.redirect_stdout(sys.stderr):
            trainer, _ = train_command.prepare(method, train_command.read_request(method, words))
            clock = Clock("cpu")
            trainer.add_callback(clock)
            watch = ReferenceWatch(trainer) if hasattr(trainer, "reference") else None
            trainer.train()
    passed = watch.pass_seconds(until=clock.steps[0][0]) if watch else 0.0
    steps = sum(end - begin for begin, end in clock.steps)
    planned = trainer.plan.memory.total / 1e9
    return {"peak_gb": peak_gb(), "base_gb": base or 0.0, "seconds": steps + passed, "planned_gb": planned}


def rows_of(case: Case) -> list[dict[str, Any]]:
    """Made-up rows; a byte is a token."""
    draw = random.Random(case.name)

    def text(mean: int) -> str:
        return "".join(draw.choice("abcdefgh ") for _ in range(round(mean * draw.uniform(0.7, 1.3)))).strip() or "a"

    prompt, answer = ROWS[case.rows]
    made: list[dict[str, Any]] = []
    for number in range(case.batch * case.steps):
        row: dict[str, Any] = {"prompt": text(prompt)}
        if case.command == "dpo":
            row |= {"chosen": text(answer), "rejected": text(answer)}
        elif case.command == "kto":
            row |= {"completion": text(answer), "label": number % 2 == 0}
        else:
            row |= {"completion": text(answer)}
        made.append(row)
    return made


def random_model(folder: Path, *, small: bool) -> Path:
    """A random model and a tokenizer of bytes, in a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY[small],
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **SHAPES[small],
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _json(words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *words]
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=[case.name for case in CASES], help="one of them; nothing is written")
    parser.add_argument("--small", action="store_true", help="a smaller model; nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--forecast", help=argparse.SUPPRESS)
    parser.add_argument("--words", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
