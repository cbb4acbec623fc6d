"""Two of the eight forecasts of memory, with a smaller model: the peak of a training's process is what its plan said.

The table of all eight is in docs/plan.md, with times; no test asserts a wall time.
"""

from __future__ import annotations

import json
import os
import sys

import plan_memory
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap's holes are those of glibc")


@pytest.mark.sample(0)
@pytest.mark.parametrize("name", plan_memory.IN_TESTS)
def test_the_peak_is_the_plans(name, tmp_path):
    case = next(case for case in plan_memory.CASES if case.name == name)
    model = plan_memory.random_model(tmp_path / "model", small=True)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in plan_memory.rows_of(case)), encoding="utf-8")
    words = json.dumps(case.words(model, data))
    environment = {**os.environ, "PREFTUNE_CACHE": str(tmp_path / "cache")}
    found = plan_memory._json(["--train", case.command, "--words", words], environment)
    assert found["planned_gb"] == pytest.approx(found["peak_gb"], rel=plan_memory.MEMORY)
    assert found["peak_gb"] > 2 * found["base_gb"]  # it is not Python alone that is compared


def test_the_cases_cover_what_changes_memory():
    cases = plan_memory.CASES
    assert len(cases) == 8
    assert {case.command for case in cases} == {"dpo", "sft", "kto"}
    for field, values in (("tuning", 2), ("dtype", 2), ("checkpointing", 2), ("rows", 2)):
        assert len({getattr(case, field) for case in cases}) == values
