"""Does a reference cost memory? Full fine-tuning with a reference pass beside the same loop without one.

    python benchmarks/reference_memory.py [--shape design] [--steps 2] [--repeats 2]

With: an empty cache, so that the reference (the model as received) scores all rows before the first step. Without:
the scores are known, so that nothing but the policy is computed. Goal: the peak of the process with it is at most 1.10
times the peak without. Runs in turn, each in a process of its own; medians. Exit code 1 if the goal is missed.
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
from record import RESULTS, provenance, rounded, write_result
from shapes import SHAPES, conversation_rows

GOAL = 1.10


def main() -> int:
    options = arguments()
    from transformers import AutoTokenizer

    from preftune.models import demo_model

    model = options.model or demo_model()
    pairs = options.pairs or SHAPES[options.shape].pairs_per_step
    rows = conversation_rows(SHAPES[options.shape], AutoTokenizer.from_pretrained(model), pairs * options.steps)
    with rows_in_file(rows) as (file, folder):

        def one_run(kind: str, repeat: int) -> dict[str, Any]:
            cache = folder / f"cache{repeat}"  # the second of a turn finds what the first one scored
            run = timed_run(
                "preftune", cache=cache, model=model, rows=file, tuning="full", pairs=pairs, steps=options.steps
            )
            scored, expected = run["preftune"]["reference_groups_scored"], len(rows) * (kind == "with_reference")
            if scored != expected:
                raise SystemExit(f"{kind}: the reference scored {scored} pairs, {expected} expected")
            print(f"  {kind}: peak {run['peak_gb']:.3f} GB, {run['seconds']:.1f} s", flush=True)
            return run

        runs = in_turn(("with_reference", "without_reference"), options.repeats, one_run)
    peaks = {kind: statistics.median(run["peak_gb"] for run in made) for kind, made in runs.items()}
    ratio = peaks["with_reference"] / peaks["without_reference"]
    words = ["python benchmarks/reference_memory.py", "--shape", options.shape]
    words += ["--pairs", str(options.pairs)] if options.pairs else []
    result = {
        "benchmark": "reference_memory",
        "case": {
            "shape": options.shape,
            "tuning": "full",
            "dtype": "float32",
            "model": Path(model).name,
            "pairs_per_step": pairs,
            "steps": options.steps,
            "repeats": options.repeats,
        },
        "peak_gb": peaks,
        "ratio": ratio,
        "goal": GOAL,
        "reached": ratio <= GOAL,
        "runs": runs,
        **provenance(" ".join([*words, "--steps", str(options.steps), "--repeats", str(options.repeats)])),
    }
    print(f"with a reference {ratio:.3f} times the peak without (goal: at most {GOAL})")
    write_result(rounded(result, 6), options.out, "reference_memory")
    return int(ratio > GOAL)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="design")
    parser.add_argument("--pairs", type=int, help="pairs per step (default: the shape's)")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", help="a folder with safetensors (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
