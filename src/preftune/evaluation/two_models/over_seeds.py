"""One comparison of several seeds' models with their baseline: the win rate over prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from preftune.errors import DatasetError
from preftune.evaluation.two_models.types import JudgedRow
from preftune.statistics.intervals import WinRate, verdict, win_rate
from preftune.statistics.over_seeds import win_rate_over_seeds, wins_over_seeds
from preftune.statistics.verdict_names import level_of
from preftune.statistics.verdict_rules import Decision
from preftune.storage.jsonl import digest, read_lines, write_json

FILE = "summary_over_seeds.json"


class OverSeeds(NamedTuple):
    """The win rate of a training over its seeds."""

    rate: WinRate
    """Its interval is over prompts and seeds."""
    per_seed: Mapping[int, WinRate]
    """The intervals are over prompts."""
    decisions: Mapping[int, Decision]

    @property
    def verdict(self) -> str:
        """The name of the verdict on the rate over all seeds."""
        return verdict(self.rate).name

    @property
    def level(self) -> int:
        """As `level_of`: the lowest of all seeds, and of the rate over them."""
        return min(level_of(self.verdict), *(decision.level for decision in self.decisions.values()))

    @property
    def grounds(self) -> str:
        """What the level comes from."""
        if level_of(self.verdict) == self.level:
            return f"{self.verdict!r} over all seeds"
        seed, lowest = min(self.decisions.items(), key=lambda item: item[1].level)
        return f"{lowest.grounds} (seed {seed})"

    def sentences(self) -> list[str]:
        rates = [one.win_rate for one in self.per_seed.values()]
        by_seed = ", ".join(f"{one.win_rate:.1%} (seed {seed})" for seed, one in self.per_seed.items())
        verdicts = ", ".join(f"{one.name} (seed {seed})" for seed, one in self.decisions.items())
        return [
            f"The aligned model {wins_over_seeds(self.rate, len(rates))}. The seeds differ by up to "
            f"{100 * (max(rates) - min(rates)):.1f} points: {by_seed}.",
            f"Verdict over all seeds: {self.verdict}. Verdicts: {verdicts}.",
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "win_rate": self.rate.to_dict(),
            "per_seed": {str(seed): one.to_dict() for seed, one in self.per_seed.items()},
            "verdict": self.verdict,
            "verdicts": {str(seed): one.name for seed, one in self.decisions.items()},
            "level": self.level,
            "sentences": self.sentences(),
        }


def over_seeds(folders: Mapping[int, Path], decisions: Mapping[int, Decision], *, into: Path) -> OverSeeds:
    """Counts the verdicts of all seeds, and writes summary_over_seeds.json.

    Args:
        folders: the eval folder of each seed, with the verdicts on the same prompts.
    Raises: DatasetError for other prompts.
    """
    rows = {seed: [JudgedRow.from_dict(line) for line in read_lines(path / "verdicts.jsonl")]
            for seed, path in folders.items()}  # fmt: skip
    prompts = [line["prompt"] for line in read_lines(next(iter(folders.values())) / "generations.jsonl")]
    ids = {tuple(one.id for one in of_seed) for of_seed in rows.values()}
    if len(ids) != 1 or len(prompts) != len(next(iter(ids))):
        raise DatasetError("The seeds were judged on different prompts. Evaluate all of them with one command.")
    clusters = [digest(prompt) for prompt in prompts]
    found = OverSeeds(
        win_rate_over_seeds(
            [[one.value for one in of_seed] for of_seed in rows.values()],
            unread_SP=[[one.unjudged for one in of_seed] for of_seed in rows.values()],
        ),
        {
            seed: win_rate([one.value for one in of_seed], clusters, unread=[one.unjudged for one in of_seed])
            for seed, of_seed in rows.items()
        },
        decisions,
    )
    into.mkdir(parents=True, exist_ok=True)
    write_json(into / FILE, found.to_dict())
    return found
