"""The five demos: the page is made from the kept result, which reaches the goal, and the goal can be missed."""

from __future__ import annotations

import json
from copy import deepcopy

import demo_seeds
import pytest


@pytest.fixture
def kept() -> dict:
    return json.loads((demo_seeds.RESULTS / "demo_seeds.json").read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_result(kept):
    assert demo_seeds.section(kept) in demo_seeds.PAGE.read_text(encoding="utf-8")


def test_the_kept_seeds_reach_the_goal(kept):
    assert len(kept["seeds"]) == 5
    assert demo_seeds.reached(kept["seeds"])


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "shorter, not better"},
        {"key_facts": {"base": 0.7, "aligned": 0.69}},
        {"at_equal_length": {"win_rate": 0.49, "ci_low": 0.4, "ci_high": 0.6}},
    ],
)
def test_two_seeds_that_are_not_better_miss_it(kept, change):
    seeds = {
        str(seed): deepcopy(next(one for one in kept["seeds"].values() if demo_seeds.is_better(one)))
        for seed in range(5)
    }
    for seed, reached in (("0", True), ("3", False)):
        seeds[seed]["aligned"] |= change
        assert demo_seeds.reached(seeds) == reached
