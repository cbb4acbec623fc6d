"""What the caller of `preftune score --ray` does itself, per row: look-ups, blocks, and writing scores to the cache.

    python benchmarks/ray_caller.py [--rows 10000] [--out FILE]

Pairs of 1,000 tokens (300 of the prompt) with random token ids go through the caller's part; the workers' part is a
stand-in whose CPU time is not counted. Blocks and scores are pickled, as they are for a worker. Seconds are CPU seconds
of one process, so other programs on the machine count little. Tokenising comes before, and is not in them.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PROMPT, ANSWER = 300, 350


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="folder of the result")
    options = parser.parse_args()
    from record import RESULTS, provenance, rounded, write_result

    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFTUNE_CACHE"] = cache
        seconds = measured(options.rows)
    result = {
        "benchmark": "ray_caller",
        "rows": options.rows,
        "tokens_per_row": PROMPT + 2 * ANSWER,
        "cpu_seconds_per_row": seconds / options.rows,
        "rows_per_second": options.rows / seconds,
        **provenance(f"python benchmarks/ray_caller.py --rows {options.rows}"),
    }
    print(f"{result['rows_per_second']:,.0f} rows per CPU second")
    write_result(rounded(result), options.out or RESULTS, "ray_caller")
    return 0


def measured(rows: int) -> float:
    """The CPU seconds of the caller."""
    from preftune.data import GroupDataset
    from preftune.training.scoring.by_team import score_on_team
    from preftune.types import Preference, TokenizedGroup

    generator = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return generator.integers(0, 32_000, count).tolist()

    pairs = (Preference(0, 1),)
    data = GroupDataset.from_groups(TokenizedGroup(ids(PROMPT), (ids(ANSWER), ids(ANSWER)), pairs) for _ in range(rows))
    args = SimpleNamespace(precompute_ref_batch_size=None, per_device_eval_batch_size=8, loss_type="sigmoid")
    team = Workers()
    began = time.process_time()
    score_on_team(team, [data], args)
    return time.process_time() - began - team.seconds


class Workers:
    """Stand-ins that give every token the score 0."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def compute(self, blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        from preftune.reference import completion_keys
        from preftune.training.scoring.by_team import Address

        for number, block in enumerate(blocks):
            sent = pickle.dumps(block, 5)
            began = time.process_time()
            scores = {
                key: np.zeros(len(completion), np.float32)
                for batch in pickle.loads(sent)
                for group in batch
                for key, completion in zip(
                    completion_keys(group.prompt_ids, group.completions, group.scored), group.completions, strict=True
                )
            }
            said = pickle.dumps((Address("0" * 32, "0" * 16, (), "zeros"), scores), 5)
            self.seconds += time.process_time() - began
            yield number, pickle.loads(said)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
