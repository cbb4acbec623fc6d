"""Writes docs/performance.md from benchmarks/results/*.json, and from nothing else.

    python benchmarks/performance_page.py [--results FOLDER] [--out FILE]

The same results give the same page; a test compares the page in the repository with what this writes. A result file of
another benchmark may answer goals of the table too: `"goals": {"gpu-best": 1.9}` (names as in `performance_goals.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from performance_goals import goals_table
from shapes import SHAPES
from work import PASSES

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
Result = dict[str, Any]

_INTRODUCTION = """# Performance

`python benchmarks/performance_page.py` generates this page from `benchmarks/results/*.json`; no number is entered by
hand. The tables apply to the machine and the versions at the end of the page."""

_METHOD = """## How it is measured

preftune and TRL 1.16 get the same model, adapter, rows in the same order, seed, learning rate and dtypes. They run in
turn, each in a separate process, and the tables show medians. The time is that of the training loop, from the start of
the first step to the end of the last one, plus the reference's pass over the rows if it is made before the first step.
Imports, loading, tokenising and preftune's check of its first step are excluded. Memory is the peak of the process. Two
checks ensure that the work is the same: the tokens are counted in both, and the losses of every step are compared.

Every ratio is of one epoch with an empty reference cache, unless its table says otherwise. TRL runs without activation
checkpointing. It gets the whole step as one batch, like preftune (`batch`), or one pair at a time, accumulated to the
same step (`single`: less padding), or its defaults if a table says so. For each goal the better of the first two is
used. Useful FLOPs are those of the formula in `benchmarks/work.py`, which is the same for both: every token counts
once, forward and backward, and once more for a reference that is computed. "Formula allows" is TRL's count divided by
preftune's; TRL's count has two padded sequences per pair and a head over every position. Recomputation is not counted
for either. The matrix rate is that of a product of 1024 x 576 by 576 x 1536. It is measured between the steps of the
same processes (and excluded from their time), because the rate of a shared machine changes from minute to minute. On
CUDA it is the highest rate of several larger products."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    options.out.write_text(render(load(options.results)), encoding="utf-8")
    return 0


def load(folder: Path) -> list[Result]:
    """All results, by file name; `file` is added to each."""
    files = sorted(folder.glob("*.json"))
    return [{**json.loads(file.read_text(encoding="utf-8")), "file": file.name} for file in files]


def render(results: Sequence[Result]) -> str:
    """The page."""
    beside_trl = sorted((r for r in results if r.get("benchmark") == "vs_trl"), key=_order)
    sections = [
        _INTRODUCTION,
        "## Goals\n\n" + goals_table(results),
        _METHOD,
        _beside_trl(beside_trl),
        _methods(_named(results, "methods_vs_trl.json")),
        _known_reference(beside_trl),
        _reference_memory(_of(results, "reference_memory")),
        _grouping(_of(results, "grouping")),
        _gpu(_of(results, "gpu")),
        _cache_lookup(_named(results, "cache_lookup.json")),
        _parity(_named(results, "parity.json")),
        _provenance(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def not_measured(what: str, command: str) -> str:
    return f"Not measured yet: {what}. `{command}` measures it."


def _of(results: Sequence[Result], benchmark: str) -> list[Result]:
    return [result for result in results if result.get("benchmark") == benchmark]


def _named(results: Sequence[Result], file: str) -> Result | None:
    return next((result for result in results if result["file"] == file), None)


def _order(result: Result) -> tuple[Any, ...]:
    case = result["case"]
    return (
        case["device"],
        case["dtype"],
        list(SHAPES).index(case["shape"]),
        list(PASSES).index(case["tuning"]),
        case["checkpointing"],
        case["trl"],
    )


_CASE = ("rows", "trains", "dtype", "checkpointing", "TRL")


def _case(result: Result) -> list[str]:
    case = result["case"]
    checkpointing = "each library's default" if case["trl"] == "defaults" else "on" if case["checkpointing"] else "off"
    return [SHAPES[case["shape"]].title, case["tuning"], case["dtype"], checkpointing, case["trl"]]


def _beside_trl(results: Sequence[Result]) -> str:
    title = "## Compared with TRL 1.16"
    missing = _missing_shapes(results)
    if not results:
        return f"{title}\n\n{missing}"
    times = [[*_case(r), *_seconds(r), *_ratios(r)] for r in results]
    work = [
        [
            *_case(r),
            *(f"{r[side]['peak_gb']:.2f}" for side in ("trl", "preftune")),
            f"{r['ratio']['memory']:.0%}",
            *(_rate(r[side]) for side in ("trl", "preftune")),
            _difference(r),
        ]
        for r in results
    ]
    lengths = [
        [
            SHAPES[r["case"]["shape"]].title,
            f"{r['tokens']['mean_prompt']:.0f}",
            f"{r['tokens']['mean_completion']:.0f}",
            str(r["case"]["pairs_per_step"]),
            str(r["case"]["steps"]),
            str(r["case"]["repeats"]),
        ]
        for r in results
    ]
    unique = list(dict.fromkeys(map(tuple, lengths)))
    parts = [
        title,
        "Time with an empty reference cache:",
        table([*_CASE, "TRL s/pair", "preftune s/pair", "faster", "formula allows", "reached of it"], times),
        "Memory (peak of the process), useful work (share of the machine's matrix rate), and the same losses:",
        table([*_CASE, "TRL GB", "preftune GB", "memory", "TRL GFLOP/s", "preftune GFLOP/s", "losses differ by"], work),
        "Lengths of the rows in tokens with the chat template, and the number of rows in training:",
        table(["rows", "mean prompt", "mean completion", "pairs per step", "steps", "repeats"], unique),
        missing,
    ]
    return "\n\n".join(part for part in parts if part)


def _seconds(result: Result) -> list[str]:
    return [f"{result[side]['seconds_per_pair']:.2f}" for side in ("trl", "preftune")]


def _ratios(result: Result) -> list[str]:
    ratio = result["ratio"]
    return [f"{ratio['time']:.2f}x", f"{ratio['allowed']:.2f}x", f"{ratio['reached_of_allowed']:.0%}"]


def _rate(side: Result) -> str:
    return f"{side['useful_gflops']:.1f} ({side['share_of_matrix_rate']:.0%})"


def _difference(result: Result) -> str:
    sign = "" if result["same_work"] else f", **more than {result['tolerance']:g}: not the same work**"
    return f"{result['largest_loss_difference']:.1e}{sign}"


def _missing_shapes(results: Sequence[Result]) -> str:
    """Shapes without their plain LoRA case."""
    there = {
        r["case"]["shape"] for r in results if r["case"]["tuning"] == "lora" and r["case"]["trl"] in ("batch", "single")
    }
    missing = [shape.title for name, shape in SHAPES.items() if name not in there]
    return not_measured(", ".join(missing), "make bench-full") if missing else ""


def _methods(result: Result | None) -> str:
    title = "## Other methods compared with TRL 1.16"
    if result is None:
        return f"{title}\n\n{not_measured('KTO, ORPO, SimPO and GRPO', 'python benchmarks/methods_vs_trl.py')}"
    rows = [
        [
            name,
            *(f"{found[side]['seconds']:.1f}" for side in ("trl", "preftune")),
            f"{found['time']:.2f}x",
            f"{found['memory']:.0%}",
            f"{found['largest_loss_difference']:.1e}"
            + (f" ({found['losses_differ_because']})" if "losses_differ_because" in found else ""),
        ]
        for name, found in result["methods"].items()
    ]
    return (
        f"{title}\n\nThe setting is HH rows, LoRA, float32, no checkpointing, steps of 4 pairs (KTO: 8 answers to 8 "
        "prompts; GRPO: 8 answers of at most 32 tokens to 2 prompts, sampling included):\n\n"
        + table(["method", "TRL s", "preftune s", "faster", "memory", "losses differ by"], rows)
    )


def _known_reference(results: Sequence[Result]) -> str:
    rows = [
        [*_case(r), *_seconds(r["known_reference"]), *_ratios(r["known_reference"])]
        for r in results
        if r["known_reference"]
    ]
    if not rows:
        return "## A second run over the same data\n\n" + not_measured("a second run", "make bench-full")
    return "\n\n".join(
        [
            "## A second run over the same data",
            "preftune reads every reference score from its cache. TRL has the same advantage: it computes the scores "
            "beforehand (`precompute_ref_log_probs`), and this time is not counted.",
            table([*_CASE, "TRL s/pair", "preftune s/pair", "faster", "formula allows", "reached of it"], rows),
        ]
    )


def _reference_memory(results: Sequence[Result]) -> str:
    title = "## Memory of a reference in full fine-tuning"
    if not results:
        return f"{title}\n\n{not_measured('the peak with and without it', 'python benchmarks/reference_memory.py')}"
    rows = [
        [
            SHAPES[r["case"]["shape"]].title,
            f"{r['peak_gb']['with_reference']:.2f}",
            f"{r['peak_gb']['without_reference']:.2f}",
            f"{r['ratio']:.3f}",
        ]
        for r in results
    ]
    return "\n\n".join(
        [
            title,
            "The table compares the peak of a run whose reference scores all rows before the first step with the peak "
            "of the same run with known scores, which computes only the policy:",
            table(["rows", "GB with", "GB without", "ratio"], rows),
        ]
    )


def _grouping(results: Sequence[Result]) -> str:
    title = "## Pairs that share a prompt"
    if not results:
        return f"{title}\n\n{not_measured('group_by_prompt against plain pairs', 'python benchmarks/grouping.py')}"
    rows = [
        [
            SHAPES[r["case"]["shape"]].title,
            r["case"]["tuning"],
            *(f"{r[side]['tokens']:,}" for side in ("plain", "grouped")),
            *(f"{r[side]['seconds']:.1f}" for side in ("plain", "grouped")),
            f"{r['ratio']['time']:.2f}x",
            f"{r['ratio']['tokens']:.2f}x",
            f"{r['ratio']['memory']:.0%}",
            _difference(r),
        ]
        for r in results
    ]
    header = "rows, trains, tokens plain, tokens grouped, s plain, s grouped, faster, fewer tokens, memory"
    return "\n\n".join(
        [
            title,
            "Each prompt has four rated completions, which give six pairs. They are trained as separate rows (plain) "
            "and as one group (grouped, `group_by_prompt=True`).",
            table([*header.split(", "), "losses differ by"], rows),
        ]
    )


def _gpu(results: Sequence[Result]) -> str:
    title = "## On a GPU"
    if not results:
        return f"{title}\n\n{not_measured('anything on a GPU', 'python benchmarks/gpu.py')}"
    parts = [title]
    for result in results:
        rows = [
            [*_gpu_case(case), name, *_gpu_run(run)] for case in result["cases"] for name, run in case["runs"].items()
        ]
        header = "model, trains, rows, pairs per step, dtype, run, tokens/s, useful TFLOP/s, GB"
        parts.append(table(header.split(", "), rows))
        ratios = [
            f"- {' '.join(_gpu_case(case)[:3])}: {ratio:.2f}x faster than TRL at its {setting}"
            for case in result["cases"]
            for setting, ratio in case["ratio"].items()
        ]
        parts += ["\n".join(ratios)] if ratios else []
    return "\n\n".join(
        [*parts, "Weights are random, the first steps are not timed, and the peak is that of the device allocator."]
    )


def _gpu_case(result: Result) -> list[str]:
    case = result["case"]
    title = SHAPES[case["rows"]].title if case["rows"] in SHAPES else case["rows"]
    return [case["shape"], case["tuning"], title, str(case["pairs"]), case["dtype"]]


def _gpu_run(run: Result) -> list[str]:
    if "failed" in run:
        return ["failed", run["failed"].replace("|", "/"), ""]
    return [
        f"{run['tokens_per_second']:,.0f}",
        f"{run['useful_tflops']:.1f} ({run['share_of_matrix_rate']:.0%})",
        f"{run['peak_gb']:.2f}",
    ]


def _cache_lookup(result: Result | None) -> str:
    title = "## Looking up reference scores"
    if result is None:
        return f"{title}\n\n{not_measured('the cost of the look-ups', 'python benchmarks/cache_lookup.py')}"
    rows = [[kind, f"{result[kind]['median_us'] / 1e3:.2f}", str(result[kind]["steps"])] for kind in ("warm", "cold")]
    return "\n\n".join(
        [
            title,
            f"The table gives the time of one step's look-ups ({result['pairs_per_step']} pairs) in a store of "
            f"{result['completions']:,} completions; cold: the file is read from disk.",
            table(["store", "ms per step", "steps"], rows),
        ]
    )


def _parity(result: Result | None) -> str:
    title = "## The same losses as TRL"
    if result is None:
        return f"{title}\n\n{not_measured('losses of 20 steps', 'make parity')}"
    rows = [
        [name, str(len(case["preftune"]["losses"])), f"{case['largest_difference']:.1e}", f"{result['tolerance']:g}"]
        for name, case in result["cases"].items()
    ]
    return f"{title}\n\n{table(['trains', 'steps', 'losses differ by', 'allowed'], rows)}"


_MACHINE: dict[str, tuple[str, Callable[[Any], str]]] = {
    "cpu": ("processor", str),
    "platform": ("system", str),
    "cores": ("cores", str),
    "memory_gb": ("memory", lambda value: f"{value} GB"),
    "cpu bfloat16": ("bfloat16 instructions", str),
    "gpu": ("GPU", str),
    "gpu 0": ("GPU", str),
}


def _provenance(results: Sequence[Result]) -> str:
    """Machine, versions, date and command of every result."""
    settings: dict[str, str] = {}
    rows = []
    for result in results:
        words = [f"{label}: {show(result['machine'][key])}" for key, (label, show) in _MACHINE.items()
                 if key in result.get("machine", {})]  # fmt: skip
        words += [f"{name} {version}" for name, version in result.get("versions", {}).items()]
        letter = settings.setdefault("; ".join(words), chr(ord("A") + len(settings)))
        command = result.get("command", f"python benchmarks/{Path(result['file']).stem}.py")
        rows.append([f"`{result['file']}`", letter, result.get("date", ""), f"`{command}`"])
    parts = ["## Results, machines, versions"]
    if rows:
        parts.append(table(["result", "setting", "date", "command"], rows))
        parts.append("\n".join(f"- {letter}: {words}" for words, letter in settings.items()))
    parts.append(
        "`make bench` measures the first case in under ten minutes on two cores; `make bench-full` measures all cases."
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
