"""The rules over runs that were recorded: made to fail, and healthy. benchmarks/guard_runs.py made them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import guard_page  # noqa: E402
from guard_replay import replay  # noqa: E402
from guard_runs import EXPECTED, RESULTS, SEEN_WHILE_TUNING  # noqa: E402

RUNS = [path for by_seed in guard_page.runs_of().values() for path in by_seed.values()]


def case_of(folder: Path) -> str:
    return folder.name.rsplit("-", 1)[0]


def alarm_comes_in_time(folder: Path) -> bool:
    steps = json.loads((folder / "run.json").read_text())["guard"]["facts"]["steps"]
    alarms = replay(folder)
    return bool(alarms) and alarms[0].name == EXPECTED[case_of(folder)] and alarms[0].step < steps / 2


def test_every_case_was_run_with_five_seeds_and_more_than_were_looked_at_while_tuning():
    seeds = {case: set(by_seed) for case, by_seed in guard_page.runs_of().items()}
    assert set(seeds) == set(EXPECTED)
    for case, found in seeds.items():
        assert len(found - set(SEEN_WHILE_TUNING)) >= 5, case


@pytest.mark.parametrize("folder", [r for r in RUNS if EXPECTED[case_of(r)] is None], ids=lambda path: path.name)
def test_a_healthy_run_raises_nothing(folder):
    assert [alarm.name for alarm in replay(folder)] == []


@pytest.mark.parametrize("case", [case for case, alarm in EXPECTED.items() if alarm])
def test_the_alarm_of_a_failing_run_comes_first_and_before_half_of_its_steps_in_four_of_five(case):
    fresh = [path for seed, path in guard_page.runs_of()[case].items() if seed not in SEEN_WHILE_TUNING]
    came = Counter(alarm_comes_in_time(path) for path in fresh)
    assert came[True] >= 0.8 * len(fresh), {path.name: guard_page.first_alarms(path) for path in fresh}


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_a_replay_says_what_was_said_when_it_ran(folder):
    """Recorded alarms are what a user read; a rule that changes wants the runs, or this record, made again."""
    path = folder / "guard.jsonl"
    recorded = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert [(a.step, a.name) for a in replay(folder)] == [(line["step"], line["name"]) for line in recorded]


def test_the_records_are_small():
    assert sum(file.stat().st_size for file in RESULTS.rglob("*") if file.is_file()) < 1_000_000


def test_the_page_shows_these_runs():
    text = guard_page.PAGE.read_text(encoding="utf-8")
    assert guard_page.table() in text
