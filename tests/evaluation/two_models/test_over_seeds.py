"""The verdict over several seeds: the lowest of all of them and of the rate over prompts and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from preftune.errors import DatasetError
from preftune.evaluation.two_models.over_seeds import OverSeeds, over_seeds
from preftune.evaluation.two_models.types import JudgedRow
from preftune.statistics.over_seeds import win_rate_over_seeds
from preftune.statistics.verdict_rules import Decision, decide
from preftune.storage.jsonl import write_lines


def folder_of(where: Path, values: Sequence[float], prefix: str = "p") -> Path:
    ids = [f"{prefix}{number}" for number in range(len(values))]
    where.mkdir(parents=True)
    rows = [JudgedRow(one, value, None, None) for one, value in zip(ids, values, strict=True)]
    write_lines(where / "verdicts.jsonl", (row.to_dict() for row in rows))
    write_lines(where / "generations.jsonl", ({"prompt": f"What is {one}?"} for one in ids))
    return where


def decided(values: Sequence[float]) -> Decision:
    rate = win_rate_over_seeds([values])
    found = decide(rate.to_dict())
    assert found is not None
    return found


def found_for(tmp_path: Path, seeds: Mapping[int, Sequence[float]]) -> OverSeeds:
    folders = {seed: folder_of(tmp_path / f"seed-{seed}", values) for seed, values in seeds.items()}
    return over_seeds(folders, {seed: decided(values) for seed, values in seeds.items()}, into=tmp_path / "eval")


def test_all_seeds_better(tmp_path: Path) -> None:
    found = found_for(tmp_path, {0: [1.0] * 36 + [0.0] * 4, 1: [1.0] * 35 + [0.0] * 5})
    assert (found.verdict, found.level) == ("better", 4)
    kept = json.loads((tmp_path / "eval" / "summary_over_seeds.json").read_text())
    assert (kept["verdict"], kept["level"]) == ("better", 4)
    assert found.per_seed[0].win_rate == 0.9
    assert kept["sentences"][1] == "Verdict over all seeds: better. Verdicts: better (seed 0), better (seed 1)."


def test_one_seed_worse_decides(tmp_path: Path) -> None:
    better = [1.0] * 38 + [0.0] * 2
    found = found_for(tmp_path, {4: better, 5: [1.0] * 5 + [0.0] * 35, 6: better})
    assert {seed: one.name for seed, one in found.decisions.items()} == {4: "better", 5: "worse", 6: "better"}
    assert found.verdict != "worse"
    assert found.level == 0
    assert found.grounds == "'worse' (seed 5)"


def test_worse_over_all_seeds_is_worse_where_no_single_seed_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    seeds = {seed: rng.permutation([1.0] * 43 + [0.0] * 57).tolist() for seed in range(5)}
    found = found_for(tmp_path, seeds)
    assert {one.name for one in found.decisions.values()} == {"undecided"}
    assert found.rate.ci_high < 0.5
    assert (found.verdict, found.level, found.grounds) == ("worse", 0, "'worse' over all seeds")


def test_undecided_where_the_seeds_differ(tmp_path: Path) -> None:
    found = found_for(tmp_path, {0: [1.0] * 60, 1: [1.0] * 42 + [0.0] * 18})
    assert {one.name for one in found.decisions.values()} == {"better"}
    assert (found.verdict, found.level) == ("undecided", 2)
    assert found.grounds == "'undecided' over all seeds"


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    folders = {0: folder_of(tmp_path / "a", [1.0, 0.0]), 1: folder_of(tmp_path / "b", [1.0, 0.0], prefix="q")}
    with pytest.raises(DatasetError, match="judged on different prompts"):
        over_seeds(folders, {seed: decided([1.0, 0.0]) for seed in folders}, into=tmp_path / "eval")
