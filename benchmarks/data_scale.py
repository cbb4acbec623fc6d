"""Many pairs through the data layer: read, tokenised, audited; and a second time, with the token ids from disk.

    python benchmarks/data_scale.py [--pairs 160000] [--out FILE]

The pairs are generated: conversations of hh-rlhf's size (650 characters a side, 2.5 questions, the last answer 170),
no two alike, of English words in the frequency in which Python's own manual has them. Each pass is a process of its
own, with the tokenizer of SmolLM2-135M-Instruct. "Held" is what the process has more, when the pairs are tokenised and
both the rows and the token ids are at hand, than after its imports; "peak" is the most it had on the way there.
Fails where reading, tokenising and auditing take more than three minutes, or a row costs more bytes than stated.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 180
"""For reading, tokenising and auditing."""
BYTES_PER_ROW = 8000
"""Most bytes of memory per row of hh-rlhf's size, at the worst moment of reading and tokenising."""

TURN, ANSWER = 105, 170
"""Characters of a turn before the last answer, and of the last answer, on average."""


def main() -> int:
    options = arguments()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options.file, options.model)))
        return 0
    from record import RESULTS, provenance, rounded, write_result

    from preftune.models import demo_model

    model = options.model or demo_model()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_pairs(file, options.pairs)
        size = file.stat().st_size
        print(f"{options.pairs:,} pairs, {size / 1e6:.0f} MB, {size / options.pairs:,.0f} bytes a row", flush=True)
        environment = {**os.environ, "PREFTUNE_CACHE": f"{folder}/cache", "TOKENIZERS_PARALLELISM": "true"}
        passes = {
            name: in_a_process(kind, file, model, environment)
            for name, kind in (("first", "tokenize"), ("second", "tokenize"), ("audit", "audit"))
        }
    first, second, audit = passes["first"], passes["second"], passes["audit"]
    assert second["recalled"] > first["recalled"], "the second pass did not find what the first has kept"
    assert second["fingerprint"] == first["fingerprint"], "the second pass has other tokens"
    result = {
        "pairs": options.pairs,
        "file_bytes": size,
        "passes": passes,
        "seconds": first["seconds"]["all"] + audit["seconds"]["all"],
        "seconds_second_time": second["seconds"]["all"],
        "bytes_per_row": {"file": size / options.pairs, "held": first["held"], "peak": first["peak"]},
        "stated": {"seconds": SECONDS, "bytes_per_row": BYTES_PER_ROW},
        **provenance(f"python benchmarks/data_scale.py --pairs {options.pairs}"),
    }
    print(
        f"read and tokenised in {first['seconds']['all']:.1f} s ({first['tokens']:,} tokens), audited in "
        f"{audit['seconds']['all']:.1f} s, a second time in {second['seconds']['all']:.1f} s; "
        f"{first['held']:,.0f} bytes a row held, {first['peak']:,.0f} at the worst moment"
    )
    write_result(rounded(result), options.out or RESULTS, "data_scale")
    slow = options.pairs >= 160_000 and result["seconds"] > SECONDS
    large = options.pairs >= 20_000 and first["peak"] > BYTES_PER_ROW  # with few rows, what is fixed weighs too much
    for wrong in ["slower than three minutes"] * slow + [f"more than {BYTES_PER_ROW:,} bytes a row"] * large:
        print(f"FAILED: {wrong}")
    return 1 if slow or large else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=160_000)
    parser.add_argument("--model", help="whose tokenizer (SmolLM2-135M-Instruct)")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_pairs(file: Path, count: int) -> None:
    """A file of hh-rlhf's columns: `chosen` and `rejected`, two transcripts that part in the last answer."""
    generator = np.random.default_rng(0)
    words = np.array(re.findall(r"[A-Za-z]+[,.]?", " ".join(pydoc_data.topics.topics.values())))
    mean = float(np.mean([len(word) + 1 for word in words]))

    def texts(characters: int, size: int) -> Iterator[str]:
        lengths = np.maximum(2, generator.lognormal(np.log(characters / mean) - 0.125, 0.5, size)).astype(int)
        drawn = generator.integers(0, len(words), lengths.sum())
        for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
            yield " ".join(words[drawn[start : start + length]])

    questions = 1 + generator.poisson(1.5, count)
    turns = texts(TURN, int((2 * questions - 1).sum()))
    answers = texts(ANSWER, 2 * count)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            said = "".join(
                f"\n\n{('Human', 'Assistant')[turn % 2]}: {next(turns)}" for turn in range(2 * questions[number] - 1)
            )
            prompt = f"{said}\n\nAssistant: "
            out.write(json.dumps({"chosen": prompt + next(answers), "rejected": prompt + next(answers)}) + "\n")


def in_a_process(kind: str, file: Path, model: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, "--file", str(file), "--model", model]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def tokenize(file: Path, model: str) -> dict[str, Any]:
    """Reads and tokenises, or recalls what was tokenised before."""
    from preftune.data import load_pairs
    from preftune.data.tokens.cache import tokenize_or_recall
    from preftune.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    warm_up(tokenizer)
    with Memory() as memory:
        began = time.perf_counter()
        pairs = load_pairs(file)
        read = time.perf_counter()
        groups, report, recalled = tokenize_or_recall(pairs, tokenizer, max_length=1024)
        done = time.perf_counter()
        held = memory.now()
    return {
        "seconds": {"read": read - began, "tokenise": done - read, "all": done - began},
        "recalled": recalled,
        "groups": len(groups),
        "dropped": report.rows_dropped,
        "tokens": groups.total_tokens,
        "fingerprint": groups.fingerprint,
        "held": held / len(pairs),
        "peak": memory.peak / len(pairs),
    }


def audit(file: Path, model: str) -> dict[str, Any]:
    """Audits without a tokenizer: lengths are counted in words."""
    from preftune.audit import audit as audited
    from preftune.audit import open_data
    from preftune.audit.checks.check import Setting

    with Memory() as memory:
        began = time.perf_counter()
        data = open_data(file)
        result = audited(Setting(data))
        seconds = time.perf_counter() - began
        held = memory.now()
    return {
        "seconds": {"all": seconds},
        "pairs": result.pairs,
        "findings": [finding.name for finding in result.findings],
        "held": held / result.pairs,
        "peak": memory.peak / result.pairs,
    }


CHILDREN = {"tokenize": tokenize, "audit": audit}


def warm_up(tokenizer: Any) -> None:
    """Imports what is imported on first use, so that it is not counted per row."""
    from preftune.data import load_pairs, tokenize_pairs

    turns = "\n\nHuman: a\n\nAssistant:"
    tokenize_pairs(load_pairs([{"chosen": f"{turns} b", "rejected": f"{turns} c"}]), tokenizer)


class Memory:
    """Bytes of this process beyond those at the beginning, watched every 20 ms."""

    def __enter__(self) -> Memory:
        import psutil

        self._process = psutil.Process()
        self._base = self._process.memory_info().rss
        self.peak = 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def now(self) -> int:
        return self._process.memory_info().rss - self._base

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *error: object) -> None:
        self.peak = max(self.peak, self.now())
        self._done.set()
        self._watcher.join()


if __name__ == "__main__":
    sys.exit(main())
