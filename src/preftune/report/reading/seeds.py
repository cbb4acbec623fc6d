"""Reads what `preftune dpo --seeds` and `preftune eval` of it leave: the runs, and the figures over all seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from preftune.errors import RequestError
from preftune.report.reading.run_files import Run, different_names, read_run
from preftune.storage.run_directory import SEEDS, seed_folders
from preftune.storage.untrusted_json import Figures, mapping, number, text


class Seeds(NamedTuple):
    """A folder of several seeds."""

    name: str
    summary: Figures
    """eval/summary_over_seeds.json; empty without an evaluation."""
    figures: Figures
    """seeds.json: the held-out figures, each with `mean`, `sd` and `per_seed`."""

    def spread(self, metric: str) -> str:
        """Mean and standard deviation of a held-out figure; empty for an unknown one."""
        found = mapping(self.figures.get(metric))
        mean, sd = number(found.get("mean")), number(found.get("sd"))
        return "" if mean is None or sd is None else f"{mean:.4g} (standard deviation {sd:.2g})"

    @property
    def verdict(self) -> str:
        """The name of the verdict on the win rate over all seeds."""
        return text(self.summary.get("verdict"))


def read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], Seeds | None]:
    """The runs of the folders; those of all seeds for one folder of several seeds, and its figures over them.

    Raises: RequestError for a folder without a run, and for a folder of seeds next to other folders.
    """
    of_seeds = [folder for folder in folders if seed_folders(folder)]
    if not of_seeds:
        names = different_names(folders)
        return [read_run(folder, name=name) for folder, name in zip(folders, names, strict=True)], None
    if len(folders) > 1:
        raise RequestError(
            f"{of_seeds[0]} holds several seeds and has a report of its own. Name it alone, or name runs "
            f"({next(iter(seed_folders(of_seeds[0]).values()))})."
        )
    root = Path(of_seeds[0]).expanduser()
    runs = [read_run(run, name=f"seed {seed}") for seed, run in seed_folders(root).items()]
    summary, kept = _object(root / "eval" / "summary_over_seeds.json"), _object(root / SEEDS)
    return runs, Seeds(root.resolve().name, summary, mapping(kept.get("figures")))


def _object(path: Path) -> Figures:
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}
