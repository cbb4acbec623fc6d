"""The length-controlled win rates of AlpacaEval 2's leaderboard again, from its public judgements.

    python benchmarks/alpaca_eval_published.py alpaca_eval     a clone of GitHub's tatsu-lab/alpaca_eval, or a bare one

For every model whose judgements (`annotations.json` of the judge weighted_alpaca_eval_gpt4_turbo) are in the
repository, the rate of `preftune.statistics.published_length_control` is compared with the leaderboard's, and the
answers are searched for cheats. Two inputs of the authors' estimator are not in the repository and are solved for:

- the difficulty of each instruction: two files of judgements still hold the authors' predictions at equal length, which
  are `sigmoid(c + b * difficulty)` with published b and c; both give the same difficulties within 1e-7;
- the judgements of the two gameable baselines: their predictions by published coefficients, which have the same sums
  with the features as the judgements, and these sums are all that the likelihood takes from them.

Files with fewer than 805 rows take the difficulty of the row's place, as the authors' program does.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, provenance, write_result
from scipy.stats import spearmanr

from preftune.evaluation.two_models.cheats import find_cheats
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.statistics.published_length_control import (
    Coefficients,
    gamed_rows,
    published_rate,
    solve_difficulty,
)

JUDGE = "weighted_alpaca_eval_gpt4_turbo"
REFERENCE = "gpt4_1106_preview"
GAMEABLE = (f"{REFERENCE}_verbose", f"{REFERENCE}_concise")
LEADERBOARD = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{JUDGE}_leaderboard.csv"
WEIGHTS = f"src/alpaca_eval/metrics/weights/{JUDGE}/length_controlled_v1/baseline_{REFERENCE}.csv"
INSTRUCTIONS = 805

Annotations = list[dict[str, Any]]


class Repository:
    """Files of the newest commit of a clone, with a work tree or bare."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = self._git("rev-parse", "HEAD").decode().strip()

    def text(self, path: str) -> str | None:
        """The text of a file; None if it is not in the clone (partial clones lack large files)."""
        try:
            return self._git("show", f"HEAD:{path}").decode("utf-8")
        except subprocess.CalledProcessError:
            return None

    def table(self, path: str) -> dict[str, dict[str, str]]:
        """A CSV file by its first column."""
        rows = csv.DictReader(io.StringIO(self.text(path) or ""))
        return {row.pop(""): row for row in rows}

    def annotated(self) -> Iterator[tuple[str, Annotations]]:
        """Model and judgements, where both are there."""
        names = self._git("ls-tree", "-r", "--name-only", "HEAD", "results").decode().splitlines()
        for name in names:
            if name.endswith(f"/{JUDGE}/annotations.json") and (text := self.text(name)) is not None:
                yield name.split("/")[1], json.loads(text)

    def letters(self, model: str) -> list[float]:
        outputs = json.loads(self.text(f"results/{model}/model_outputs.json") or "[]")
        return [float(len(row["output"])) for row in outputs]

    def _git(self, *words: str) -> bytes:
        # a partial clone must not fetch what it lacks
        command = ["git", "-c", "remote.origin.promisor=false", "-C", str(self.folder), *words]
        return subprocess.run(command, check=True, capture_output=True).stdout


def outcomes_of(rows: Annotations) -> list[float]:
    """Preferences from 1 (the reference) to 2 (the model); 0 is an old sign of a tie."""
    return [(float(row["preference"]) or 1.5) - 1 for row in rows]


def reproduce(name: str, rows: Annotations, difficulty: Any, gamed: Any, published: dict[str, str]) -> dict[str, Any]:
    """One model: published and own rate, and the cheats in its answers."""
    base, answers = ([str(row[key]) for row in rows] for key in ("output_1", "output_2"))
    letters = ([float(len(text)) for text in side] for side in (base, answers))
    found = published_rate(outcomes_of(rows), *letters, difficulty[: len(rows)], gamed)
    answered = [
        AnsweredRow(str(n), row["instruction"], before, after, 0, 0, True, True)
        for n, (row, before, after) in enumerate(zip(rows, base, answers, strict=True))
    ]
    rate, target = 100 * found.win_rate, float(published["length_controlled_winrate"])
    return {
        "model": name,
        "published": round(target, 3),
        "ours": round(rate, 3),
        "difference": round(rate - target, 3),
        "win_rate": round(100 * float(np.mean(outcomes_of(rows))), 3),
        "strength": found.strength,
        "cheats": [cheat.name for cheat in find_cheats(answered)],
    }


def run(repository: Repository) -> dict[str, Any]:
    """All models, and how well the published rates are met."""
    weights = {
        name: Coefficients(*(float(value) for value in row.values())) for name, row in repository.table(WEIGHTS).items()
    }
    leaderboard, models = repository.table(LEADERBOARD), dict(repository.annotated())
    solved = [
        ([row["glm_preference"] for row in rows], weights[name])
        for name, rows in models.items()
        if len(rows) == INSTRUCTIONS and rows[0].get("glm_preference") is not None and name in weights
    ]
    difficulty = solve_difficulty(solved)
    each = [solve_difficulty([one]) for one in solved]
    gamed = gamed_rows(
        [(repository.letters(name), weights[name]) for name in GAMEABLE], repository.letters(REFERENCE), difficulty
    )
    found = [
        reproduce(name, rows, difficulty, gamed, leaderboard[name])
        for name, rows in models.items()
        if name in leaderboard and name != REFERENCE
    ]
    away = np.abs([one["difference"] for one in found])
    order = spearmanr([one["published"] for one in found], [one["ours"] for one in found])
    return {
        "repository": "tatsu-lab/alpaca_eval",
        "commit": repository.commit,
        "models": len(found),
        "difficulty_from": len(solved),
        "difficulty_spread": float(np.max(np.ptp(each, axis=0))),
        "within_1_point": float((away <= 1.0).mean()),
        "largest_difference": float(away.max()),
        "mean_difference": round(float(away.mean()), 4),
        "spearman": round(float(order.statistic), 5),
        "rates": sorted(found, key=lambda one: -one["published"]),
    }


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="a clone of tatsu-lab/alpaca_eval")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, help="folder of the result")
    asked = parser.parse_args(words)
    began = time.perf_counter()
    result = run(Repository(asked.repository))
    result = {
        **provenance("python benchmarks/alpaca_eval_published.py alpaca_eval"),
        "seconds": round(time.perf_counter() - began, 1),
        **result,
    }
    write_result(result, asked.output, "alpaca_eval_published")
    print(
        f"{result['models']} models: {result['within_1_point']:.0%} within 1 point of the published rate, the largest "
        f"difference {result['largest_difference']:.2f} points, Spearman {result['spearman']:.4f}"
    )
    for one in result["rates"]:
        if one["cheats"]:
            print(f"{one['model']} ({one['published']:.1f}%): {', '.join(one['cheats'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
