"""benchmarks/ray_scale.py: the table of docs/scaling.md is what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import ray_scale

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_page_is_the_result() -> None:
    result = json.loads((ROOT / "benchmarks/results/ray_scale.json").read_text(encoding="utf-8"))
    assert not any(stage["same_bytes"] is False for stage in result["stages"].values())
    assert ray_scale.table(result["stages"]) in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
