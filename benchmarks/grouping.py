"""What `group_by_prompt` saves: prompts with four rated completions, six pairs each, as groups and as plain pairs.

    python benchmarks/grouping.py [--shape ultrafeedback] [--tuning lora|full] [--steps 3] [--repeats 2]

A step trains on the six pairs of one prompt: as a group of one prompt and four completions, or as six rows. The loss is
the same, and so are its gradients: the losses of the following steps agree. Runs in turn, each in a process of its own
with an empty reference cache; medians. Exit code 1 if a loss differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from children import in_turn, rows_in_file, timed_run
from record import RESULTS, largest_loss_difference, provenance, rounded, write_result
from shapes import SHAPES, rated_rows

COMPLETIONS = 4
PAIRS = COMPLETIONS * (COMPLETIONS - 1) // 2
TOLERANCE = 1e-3


def main() -> int:
    options = arguments()
    from transformers import AutoTokenizer

    from preftune.models import demo_model

    model = options.model or demo_model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = rated_rows(SHAPES[options.shape], tokenizer, options.steps, completions=COMPLETIONS)
    with rows_in_file(rows) as (file, folder):

        def one_run(kind: str, repeat: int) -> dict[str, Any]:
            run = timed_run(
                "preftune",
                cache=folder / f"{kind}{repeat}",
                model=model,
                rows=file,
                tuning=options.tuning,
                pairs=1 if kind == "grouped" else PAIRS,
                steps=options.steps,
                group_by_prompt=kind == "grouped",
            )
            print(f"  {kind}: {run['seconds']:.1f} s, {sum(run['tokens'].values()):,} tokens", flush=True)
            return run

        runs = in_turn(("plain", "grouped"), options.repeats, one_run)
    result = evaluate(runs)
    case = {
        "shape": options.shape,
        "tuning": options.tuning,
        "dtype": "float32",
        "model": Path(model).name,
        "completions_per_prompt": COMPLETIONS,
        "pairs_per_step": PAIRS,
        "steps": options.steps,
        "repeats": options.repeats,
    }
    command = f"python benchmarks/grouping.py --shape {options.shape} --tuning {options.tuning}"
    command += f" --steps {options.steps} --repeats {options.repeats}"
    print(
        f"grouped: {result['ratio']['time']:.2f}x faster, {result['ratio']['tokens']:.2f}x fewer tokens, largest "
        f"difference of a loss {result['largest_loss_difference']:.1e} ({TOLERANCE:g} allowed)"
    )
    result = {"benchmark": "grouping", "case": case, **result, **provenance(command)}
    write_result(rounded(result, 6), options.out, f"grouping-{options.tuning}")
    return int(not result["same_work"])


def evaluate(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, ratios, and whether the losses agree."""
    sides = {}
    for kind, made in runs.items():
        sides[kind] = {
            "seconds": statistics.median(run["seconds"] for run in made),
            "peak_gb": statistics.median(run["peak_gb"] for run in made),
            "tokens": sum(made[0]["tokens"].values()),
            "runs": made,
        }
    plain, grouped = sides["plain"], sides["grouped"]
    worst = largest_loss_difference([run for made in runs.values() for run in made])
    return {
        **sides,
        "ratio": {
            "time": plain["seconds"] / grouped["seconds"],
            "tokens": plain["tokens"] / grouped["tokens"],
            "memory": grouped["peak_gb"] / plain["peak_gb"],
        },
        "largest_loss_difference": worst,
        "tolerance": TOLERANCE,
        "same_work": worst <= TOLERANCE,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ultrafeedback")
    parser.add_argument("--tuning", choices=("lora", "full"), default="lora")
    parser.add_argument("--steps", type=int, default=3, help="prompts, one a step")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", help="a folder with safetensors (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
