"""Five demos with five seeds: is the model better by the rules of the verdict, and what does DPO add to SFT?

    python benchmarks/demo_seeds.py [--seeds 0 1 2 3 4] [--folder runs/demo-seeds]

Every seed is one `preftune demo` (docs/demo.md). A seed that is done is not repeated; remove the folder after a
change. The goal is the verdict "better" for all seeds but one, with no fewer key facts than before and a rate of at
least 50% at equal length; the exit code is 1 without it. The result is kept in results/demo_seeds.json, and the table
of docs/demo.md is made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, provenance, rounded, write_result

from preftune.statistics.over_seeds import win_rate_over_seeds
from preftune.storage.jsonl import read_lines

COMPARISONS = {"aligned": "eval", "sft": "sft/eval", "over_sft": "eval_over_sft"}
"""Name -> the folder of the evaluation in the demo's output."""
PAGE = Path(__file__).parent.parent / "docs/demo.md"
BEGIN, END = "<!-- written by benchmarks/demo_seeds.py from results/demo_seeds.json -->", "<!-- end -->"


def main() -> int:
    options = arguments()
    folder = Path(options.folder)
    seeds = {str(seed): of_one_seed(folder, seed) for seed in options.seeds}
    pooled = {name: over_seeds(folder, options.seeds, place) for name, place in COMPARISONS.items()}
    result = {
        "benchmark": "demo_seeds",
        "pooled": rounded(pooled),
        "seeds": rounded(seeds),
        **provenance(f"python benchmarks/demo_seeds.py --seeds {' '.join(map(str, options.seeds))}"),
    }
    write_result(result, options.results, "demo_seeds")
    if options.results == RESULTS:
        before, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + section(result) + after.partition(END)[2], encoding="utf-8")
    print(section(result))
    return 0 if reached(result["seeds"]) else 1


def of_one_seed(folder: Path, seed: int) -> dict[str, Any]:
    """Runs the demo, if that is not done yet, and reads its three evaluations."""
    out, log = folder / f"seed-{seed}", folder / f"seed-{seed}.log"
    done = out / "seconds.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        words = [sys.executable, "-m", "preftune", "demo", "--seed", str(seed), "--output", str(out)]
        with log.open("w", encoding="utf-8") as file:
            subprocess.run(
                words, check=True, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "100"}
            )
        done.write_text(json.dumps(round(time.perf_counter() - began)), encoding="utf-8")
    found = {
        name: figures_of(json.loads((out / place / "summary.json").read_text())) for name, place in COMPARISONS.items()
    }
    return {"seconds": json.loads(done.read_text()), **found}


def figures_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation."""
    facts, equal = summary["key_fact_rate"], summary["length_controlled"]
    return {
        "verdict": summary["verdict"],
        **{name: summary[name] for name in ("win_rate", "ci_low", "ci_high", "wins", "ties", "losses")},
        "at_equal_length": equal and {name: equal[name] for name in ("win_rate", "ci_low", "ci_high")},
        "key_facts": {side: facts[side]["rate"] for side in ("base", "aligned")},
        "mean_tokens": summary["mean_tokens"],
    }


def over_seeds(folder: Path, seeds: Sequence[int], place: str) -> dict[str, Any]:
    """The win rate over prompts and seeds."""
    values = [
        [float(row["value"]) for row in read_lines(folder / f"seed-{seed}" / place / "verdicts.jsonl")]
        for seed in seeds
    ]
    return win_rate_over_seeds(values).to_dict()


def is_better(seed: Mapping[str, Any]) -> bool:
    """The goal for one seed."""
    one = seed["aligned"]
    return (
        one["verdict"] == "better"
        and one["key_facts"]["aligned"] >= one["key_facts"]["base"]
        and (one["at_equal_length"] is None or one["at_equal_length"]["win_rate"] >= 0.5)
    )


def reached(seeds: Mapping[str, Any]) -> bool:
    return sum(map(is_better, seeds.values())) >= max(1, len(seeds) - 1)


def section(result: Mapping[str, Any]) -> str:
    """The table of docs/demo.md."""
    lines = [
        BEGIN,
        "",
        "| seed | win rate | at equal length | key facts | tokens | verdict | SFT alone | DPO over SFT | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, one in result["seeds"].items():
        all_of_it, sft, over_sft = (one[name] for name in COMPARISONS)
        equal, facts, tokens = all_of_it["at_equal_length"], all_of_it["key_facts"], all_of_it["mean_tokens"]
        lines.append(
            f"| {seed} | {share(all_of_it)} | {share(equal) if equal else 'equal lengths'} | {facts['base']:.0%} to "
            f"{facts['aligned']:.0%} | {tokens['base']:.0f} to {tokens['aligned']:.0f} | {all_of_it['verdict']} | "
            f"{sft['win_rate']:.1%}, key facts {sft['key_facts']['aligned']:.0%} | {share(over_sft)} | "
            f"{one['seconds']} |"
        )
    pooled = result["pooled"]
    lines += [
        "",
        f"Over {len(result['seeds'])} seeds and {pooled['aligned']['prompts']} prompts, the aligned model wins "
        f"{share(pooled['aligned'])} of the comparisons with the model as received, SFT alone {share(pooled['sft'])}, "
        f'and the aligned model {share(pooled["over_sft"])} of those with SFT alone. The verdict is "better" for '
        f"{sum(one['aligned']['verdict'] == 'better' for one in result['seeds'].values())} of "
        f"{len(result['seeds'])} seeds.",
        "",
        f"Measured on {result['date']} with {result['machine']['cores']} cores.",
        "",
        END,
    ]
    return "\n".join(lines)


def share(rate: Mapping[str, float]) -> str:
    return f"{rate['win_rate']:.1%} ({100 * rate['ci_low']:.1f} to {100 * rate['ci_high']:.1f})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", default="runs/demo-seeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
