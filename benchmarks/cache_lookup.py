"""What the reference cache costs a training step: the look-ups of 8 pairs in a store of 100,000.

    python benchmarks/cache_lookup.py [--completions 200000] [--pairs 8] [--steps 300] [--cold-steps 30] [--out FILE]

A step is timed as `ReferenceScores` does it, from the packed batch to the tensor of scores: hashing the token ids, one
query, checksums, joining. Warm: steps of pairs in random order, the file in the system's memory, as in a run. Cold: the
file was dropped from the system's memory and the store opened anew before every step, as in the first step of a run.
No model is computed. Prints the medians and keeps everything in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_TOKENS = 200
COMPLETION_TOKENS = 100
VOCABULARY = 49_152
KNOWN_PAIRS = 4_000
"""Pairs whose token ids are kept, for the steps to draw from; the others are in the store under random keys."""


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        groups = fill(Path(folder), options.completions)
        seconds = time.perf_counter() - began
        file = next(Path(folder).rglob("*.sqlite"))
        size = file.stat().st_size
        print(f"{options.completions:,} completions, {size / 1e6:.0f} MB, written in {seconds:.1f} s", flush=True)
        warm = list(timed(Path(folder), groups, options.pairs, options.steps, cold=False))
        cold = list(timed(Path(folder), groups, options.pairs, options.cold_steps, cold=True))
    figures = {name: summary(steps) for name, steps in (("warm", warm), ("cold", cold))}
    for name, figure in figures.items():
        print(
            f"{name}: {figure['median_us']:,.0f} us a step of {options.pairs} pairs "
            f"({', '.join(f'{part} {value:,.0f}' for part, value in figure['parts_us'].items())}); "
            f"under 1% of every step longer than {figure['median_us'] / 10:,.0f} ms"
        )
    result = {
        "completions": options.completions,
        "pairs_per_step": options.pairs,
        "mean_tokens": {"prompt": PROMPT_TOKENS, "completion": COMPLETION_TOKENS},
        "file_bytes": size,
        "write_seconds": round(seconds, 2),
        **figures,
        "versions": {name: metadata.version(name) for name in ("preftune", "torch", "numpy", "xxhash")}
        | {"sqlite": sqlite3.sqlite_version, "python": platform.python_version()},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "date": time.strftime("%Y-%m-%d"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {options.out}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cold-steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache_lookup.json")
    return parser.parse_args()


def store_in(folder: Path) -> Any:
    from preftune.reference import ScoreStore

    return ScoreStore(folder, fingerprint="0" * 32, numerics="0" * 16)


def fill(folder: Path, completions: int) -> list[Any]:
    """Scores of that many completions; the groups of the pairs that steps are made of."""
    from preftune.reference import completion_keys
    from preftune.types import Preference, TokenizedGroup

    generator = np.random.default_rng(0)

    def length(mean: int) -> int:
        return max(1, int(generator.lognormal(np.log(mean) - 0.125, 0.5)))

    def ids(count: int) -> list[int]:
        return generator.integers(0, VOCABULARY, count).tolist()

    groups = []
    for _ in range(min(KNOWN_PAIRS, completions // 2)):
        sides = (ids(length(COMPLETION_TOKENS)), ids(length(COMPLETION_TOKENS)))
        groups.append(TokenizedGroup(ids(length(PROMPT_TOKENS)), sides, (Preference(0, 1),)))
    keys = [
        (key, len(c))
        for g in groups
        for key, c in zip(completion_keys(g.prompt_ids, g.completions), g.completions, strict=True)
    ]
    keys += [(generator.bytes(16), length(COMPLETION_TOKENS)) for _ in range(completions - len(keys))]
    order = generator.permutation(len(keys))
    store = store_in(folder)
    for start in range(0, len(keys), 1000):
        part = [keys[i] for i in order[start : start + 1000]]
        store.put({key: -generator.random(tokens, dtype=np.float32) for key, tokens in part})
    store.close()
    return groups


def timed(folder: Path, groups: list[Any], pairs: int, steps: int, *, cold: bool) -> Iterator[dict[str, float]]:
    """Microseconds of every step, in all and by part; every key must be found."""
    from preftune.logps.batch import pack
    from preftune.reference import ReferenceScores

    generator = np.random.default_rng(1)
    store = store_in(folder)
    for step in range(-10 if not cold else 0, steps):
        batch = pack([groups[i] for i in generator.choice(len(groups), pairs, replace=False)])
        if cold:
            store.close()
            drop_from_memory(store.path)
            store = store_in(folder)
        looked_up: list[float] = []
        reference = ReferenceScores(NoSource(), lambda *_: None, Timed(store, looked_up), autocast=nullcontext)
        began = time.perf_counter()
        reference(None, batch)
        whole = time.perf_counter() - began
        assert reference.misses == 0
        if step >= 0:
            query = sum(looked_up)
            yield {"total": whole * 1e6, "query": query * 1e6, "hash and join": (whole - query) * 1e6}
    store.close()


class NoSource:
    """Fails when it is asked to score."""

    description, fingerprint, live = "nobody", "0" * 32, True
    score = None


class Timed:
    """A store that notes how long its answers take."""

    def __init__(self, store: Any, seconds: list[float]) -> None:
        self.store, self.seconds = store, seconds

    def get(self, keys: Any) -> Any:
        keys = list(keys)
        began = time.perf_counter()
        found = self.store.get(keys)
        self.seconds.append(time.perf_counter() - began)
        return found


def drop_from_memory(path: Path) -> None:
    """Asks the system to forget the file's pages, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in path.parent.glob(f"{path.name}*"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(steps: list[dict[str, float]]) -> dict[str, Any]:
    total = sorted(step["total"] for step in steps)
    return {
        "median_us": round(statistics.median(total), 1),
        "worst_of_10_us": round(total[int(0.9 * (len(total) - 1))], 1),
        "parts_us": {
            part: round(statistics.median(step[part] for step in steps), 1) for part in ("query", "hash and join")
        },
        "steps": len(steps),
    }


if __name__ == "__main__":
    sys.exit(main())
