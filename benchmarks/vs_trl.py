"""preftune beside TRL 1.16: the same model, rows, order, loss, LoRA and dtype; time, memory, work, and equal losses.

    python benchmarks/vs_trl.py --shape design [--tuning lora|full] [--dtype float32] [--checkpointing]
                                [--trl batch|single|defaults] [--warm] [--steps 3] [--pairs N] [--repeats 2]
    python benchmarks/vs_trl.py --all

Every run is a process of its own, TRL and preftune in turn (A B A B); medians are kept. The matrix rate of the machine
is measured between the steps of these processes, and before and after them. Every ratio is of one epoch with an empty
reference cache; `--warm` adds a second run of each with known reference scores, reported apart. Exit code 1 if the
losses of a step differ by more than the tolerance: then it was not the same work. Results go to benchmarks/results, one
file per case.

TRL at its best settings on a CPU is TRL without activation checkpointing, which its defaults add, either with the
whole step as one batch (`batch`, padded to its longest row) or one pair at a time, accumulated to the same step
(`single`: less padding and memory, more and smaller products). Goals are held against the better of the two. What
else it offers does not apply, or changes nothing in one epoch: `padding_free` is switched off in 1.16 ("temporarily
unavailable"), flash attention, `use_liger_kernel` and `use_kernels` are for GPUs, `precompute_ref_log_probs` computes
the same passes earlier (so it is TRL's side of `--warm`), and grouping rows by length would be another order of the
rows. Its defaults are everything left as it is except precision, which is the case's (TRL's default is bfloat16
autocast); preftune is then left at its defaults as well. `--checkpointing` switches it on in both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from children import ChildError, in_turn, matrix_rate, rows_in_file, timed_run
from record import RESULTS, largest_loss_difference, provenance, rounded, write_result
from shapes import SHAPES, PairTokens, conversation_rows, token_lengths
from work import PASSES, ModelSize, padded_flops, useful_flops

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference of a step's loss that rounding explains over a few steps."""


def main() -> int:
    options = arguments()
    from preftune.models import demo_model

    options.model = options.model or demo_model()
    failed = []
    for case in cases(options):
        try:
            if not measure(case, options):
                failed.append(f"{name_of(case)}: the losses differ")
        except ChildError as error:
            failed.append(f"{name_of(case)}: {error}")
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return int(bool(failed))


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--shape", choices=SHAPES, default="design")
    which.add_argument(
        "--all", action="store_true", help="every shape, LoRA and full, checkpointing on and off, and TRL's defaults"
    )
    parser.add_argument("--tuning", "--case", choices=PASSES, default="lora")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    settings = parser.add_mutually_exclusive_group()
    settings.add_argument("--checkpointing", action="store_true", help="activation checkpointing in both")
    settings.add_argument("--trl", choices=("batch", "single", "defaults"), default="batch")
    parser.add_argument("--warm", action="store_true", help="a second run of each, with known reference scores")
    parser.add_argument("--pairs", type=int, help="pairs per step (default: the shape's)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="a folder with safetensors (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(words)
    if min(options.steps, options.repeats, options.pairs or 1) < 1:
        parser.error("--steps, --repeats and --pairs must be at least 1")
    return options


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What to measure: the one case asked for, or all. Of all, only the plain ones have a second run."""
    shared = {"dtype": options.dtype, "device": options.device}
    if not options.all:
        settings = {"checkpointing": options.checkpointing, "trl": options.trl, "warm": options.warm}
        yield {"shape": options.shape, "tuning": options.tuning, **shared, **settings}
        return
    for shape in SHAPES:
        for tuning in PASSES:
            plain = {"shape": shape, "tuning": tuning, **shared, "checkpointing": False, "trl": "batch"}
            yield {**plain, "warm": options.warm}
            yield {**plain, "checkpointing": True, "warm": False}
            if tuning == "lora":
                yield {**plain, "trl": "single", "warm": False}
                yield {**plain, "trl": "defaults", "warm": False}


def name_of(case: dict[str, Any]) -> str:
    """The name of a case's result file."""
    words = ["vs_trl", case["shape"], case["tuning"], case["dtype"]]
    words += ["checkpointing"] * case["checkpointing"] + [case["trl"]] * (case["trl"] != "batch")
    return "-".join(words + ["cuda"] * (case["device"] == "cuda"))


def command_of(case: dict[str, Any], options: argparse.Namespace) -> str:
    """The command that measures a case again."""
    words = ["python benchmarks/vs_trl.py", "--shape", case["shape"], "--tuning", case["tuning"]]
    words += ["--dtype", case["dtype"]] + ["--checkpointing"] * case["checkpointing"]
    words += ["--trl", case["trl"]] * (case["trl"] != "batch") + ["--warm"] * case["warm"]
    words += ["--device", "cuda"] * (case["device"] == "cuda")
    words += ["--pairs", str(options.pairs)] if options.pairs else []
    return " ".join([*words, "--steps", str(options.steps), "--repeats", str(options.repeats)])


def measure(case: dict[str, Any], options: argparse.Namespace) -> bool:
    """Measure one case, keep the result, and say whether the losses agree."""
    from transformers import AutoTokenizer

    tokenizer, shape = AutoTokenizer.from_pretrained(options.model), SHAPES[case["shape"]]
    pairs = options.pairs or shape.pairs_per_step
    rows = conversation_rows(shape, tokenizer, pairs * options.steps)
    lengths = token_lengths(rows, tokenizer)
    print(f"{name_of(case)}: {options.steps} steps of {pairs} pairs, {options.repeats} times each", flush=True)
    rates = [matrix_rate(case["dtype"], case["device"])]
    with rows_in_file(rows) as (file, folder):
        flags = {
            "model": options.model,
            "rows": file,
            "tuning": case["tuning"],
            "dtype": case["dtype"],
            "pairs": pairs,
            "steps": options.steps,
            "checkpointing": "default" if case["trl"] == "defaults" else "on" if case["checkpointing"] else "off",
            "device": case["device"],
        }
        own = {"trl": {**flags, "one_at_a_time": case["trl"] == "single"}, "preftune": flags}
        runs = in_turn(
            own,
            options.repeats,
            lambda library, repeat: one_run(library, folder / f"cache{repeat}", lengths, own[library]),
        )
        second = {}
        for library in runs if case["warm"] else ():
            second[library] = one_run(library, folder / "cache0", lengths, {**own[library], "known_reference": True})
    rates.append(matrix_rate(case["dtype"], case["device"]))
    result = evaluate(case, runs, second, lengths, pairs, ModelSize.of(options.model), max(r["best"] for r in rates))
    result = {
        "benchmark": "vs_trl",
        "case": {
            **case,
            "model": Path(options.model).name,
            "pairs_per_step": pairs,
            "steps": options.steps,
            "repeats": options.repeats,
        },
        **result,
        "matrix_rate": rates,
        "threads": runs["trl"][0]["threads"],
        **provenance(command_of(case, options)),
    }
    report(result)
    write_result(rounded(result, 6), options.out, name_of(case))
    return bool(result["same_work"])


def one_run(library: str, cache: Path, lengths: list[PairTokens], flags: dict[str, Any]) -> dict[str, Any]:
    """One child, checked: the tokens are the rows', and the reference was computed or known as was asked.

    Raises: ChildError.
    """
    run = timed_run(library, cache=cache, **flags)
    expected = {"prompt": sum(p for p, _, _ in lengths), "completion": sum(c + r for _, c, r in lengths)}
    if run["tokens"] != expected:
        raise ChildError(f"{library} trained on {run['tokens']} tokens, not on the rows' {expected}")
    if library == "preftune":
        scored, known = run["preftune"]["reference_groups_scored"], flags.get("known_reference", False)
        if scored != (0 if known else len(lengths)):
            raise ChildError(f"preftune's reference scored {scored} of {len(lengths)} pairs in this run")
    print(
        f"  {library}{', reference known' if flags.get('known_reference') else ''}: {run['seconds']:.1f} s "
        f"(set-up {run['setup_seconds']:.1f} s), peak {run['peak_gb']:.2f} GB, "
        f"losses {' '.join(f'{loss:.4f}' for loss in run['losses'])}",
        flush=True,
    )
    return run


def evaluate(
    case: dict[str, Any],
    runs: dict[str, list[dict[str, Any]]],
    second: dict[str, dict[str, Any]],
    lengths: list[PairTokens],
    pairs: int,
    size: ModelSize,
    matrix_gflops: float,
) -> dict[str, Any]:
    """Medians, ratios, useful work, and whether the losses are the same."""
    together = 1 if case["trl"] == "single" else pairs
    steps = [lengths[start : start + together] for start in range(0, len(lengths), together)]
    passes, everywhere = PASSES[case["tuning"]], case["device"] == "cpu"

    def side(all_runs: list[dict[str, Any]], flops: float) -> dict[str, Any]:
        seconds = statistics.median(run["seconds"] for run in all_runs)
        gflops = flops / seconds / 1e9
        during = [run["matrix_gflops"] for run in all_runs if run.get("matrix_gflops")]
        rate = statistics.median(during) if during else matrix_gflops
        return {
            "seconds": seconds,
            "seconds_per_pair": seconds / len(lengths),
            "peak_gb": statistics.median(run.get("device_peak_gb", run["peak_gb"]) for run in all_runs),
            "useful_gflops": gflops,
            "matrix_gflops": rate,
            "share_of_matrix_rate": gflops / rate,
            "runs": all_runs,
        }

    def compare(trl: list[dict[str, Any]], ours: list[dict[str, Any]], reference: int) -> dict[str, Any]:
        useful = useful_flops(size, lengths, passes=passes, reference=reference)
        padded = padded_flops(size, steps, passes=passes, reference=reference, head_everywhere=everywhere)
        sides = {"trl": side(trl, useful), "preftune": side(ours, useful)}
        times = sides["trl"]["seconds"] / sides["preftune"]["seconds"]
        return {
            **sides,
            "ratio": {
                "time": times,
                "memory": sides["preftune"]["peak_gb"] / sides["trl"]["peak_gb"],
                "allowed": padded / useful,
                "reached_of_allowed": times / (padded / useful),
            },
            "useful_flops": useful,
        }

    worst = largest_loss_difference([*runs["trl"], *runs["preftune"], *second.values()])
    return {
        "tokens": {
            "mean_prompt": statistics.mean(p for p, _, _ in lengths),
            "mean_completion": statistics.mean(c for _, *sides in lengths for c in sides),
        },
        **compare(runs["trl"], runs["preftune"], reference=1),
        "known_reference": compare([second["trl"]], [second["preftune"]], reference=0) if second else None,
        "largest_loss_difference": worst,
        "tolerance": TOLERANCE[case["dtype"]],
        "same_work": worst <= TOLERANCE[case["dtype"]],
        "matrix_gflops": matrix_gflops,
    }


def report(result: dict[str, Any]) -> None:
    """The figures of a case on the terminal."""
    for title, part in (("first run", result), ("reference known", result["known_reference"])):
        if part is None:
            continue
        ratio, trl, ours = part["ratio"], part["trl"], part["preftune"]
        print(
            f"  {title}: {ratio['time']:.2f}x faster ({trl['seconds_per_pair']:.2f} and "
            f"{ours['seconds_per_pair']:.2f} s a pair), {ratio['memory']:.0%} of the memory ({trl['peak_gb']:.2f} and "
            f"{ours['peak_gb']:.2f} GB)\n"
            f"    ratio reached / ratio the formula allows times padding: {ratio['time']:.2f} / {ratio['allowed']:.2f} "
            f"= {ratio['reached_of_allowed']:.0%} (goal 85%)\n"
            f"    useful GFLOP/s: TRL {trl['useful_gflops']:.1f} ({trl['share_of_matrix_rate']:.0%} of the matrix rate "
            f"in those runs, {trl['matrix_gflops']:.1f}), preftune {ours['useful_gflops']:.1f} "
            f"({ours['share_of_matrix_rate']:.0%} of {ours['matrix_gflops']:.1f})"
        )
    print(f"  largest difference of a loss: {result['largest_loss_difference']:.1e} ({result['tolerance']:g} allowed)")


if __name__ == "__main__":
    sys.exit(main())
