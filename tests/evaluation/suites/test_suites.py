from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preftune.errors import RequestError
from preftune.evaluation.suites import SUITES, find_suite, run_suite
from preftune.evaluation.suites.asking import cut_off
from preftune.evaluation.suites.result import Part, SuiteResult
from preftune.evaluation.suites.sources import look_at_some
from preftune.statistics.intervals import share
from preftune.statistics.paired import Comparison, by_group, compare_means, compare_shares
from tests.evaluation.suites.scripted import Speaker, contest


def test_every_suite_can_be_loaded_and_listing_them_loads_none() -> None:
    import importlib

    for entry in SUITES.values():
        assert callable(importlib.import_module(f"preftune.evaluation.suites.{entry.module}").run)
    code = (
        "import sys; from preftune.evaluation.suites import SUITES; print(len(SUITES), 'torch' in sys.modules,"
        " any(name.startswith('preftune.evaluation.suites.') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "False", "False"]


def test_a_typo_and_an_option_of_another_suite(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no suite 'mtbench'.*Did you mean mt-bench"):
        find_suite("mtbench")
    with pytest.raises(RequestError, match=r"no suite 'alpaca_evil'.*Did you mean alpaca-eval"):
        find_suite("alpaca_evil")
    ready = contest(tmp_path, generate=Speaker(lambda side, prompt: "x"))
    with pytest.raises(RequestError, match="xstest takes no --tasks; it is for general"):
        run_suite("xstest", ready, tasks=["hellaswag"])
    with pytest.raises(RequestError, match="mt-bench takes no --beta; it is for held-out"):
        run_suite("mt-bench", ready, beta=0.1)
    with pytest.raises(RequestError, match="reads one --suite_data, not 2"):
        run_suite("xstest", ready, data=["a", "b"])


def comparison(**more: Any) -> Comparison:
    values = {"name": "figure", "base": 0.5, "aligned": 0.4, "difference": -0.1, "ci_low": -0.15, "ci_high": -0.05}
    return Comparison(**{**values, "better": "higher", "n": 9, **more})


def test_verdicts() -> None:
    assert comparison().verdict == "worse"
    assert comparison(better="lower").verdict == "better"
    assert comparison(ci_high=0.01).verdict == "no difference shown"
    assert comparison(ci_low=None, ci_high=None).verdict == "no difference shown"
    assert "too few prompts" in comparison(ci_low=None, ci_high=None).sentence()
    assert comparison().sentence() == (
        "Figure: 50.0% for the baseline, 40.0% for the aligned model (-10.0, 95% interval -15.0 to -5.0, n=9): worse."
    )


def test_a_paired_interval_never_has_no_width_and_stays_inside() -> None:
    alike = compare_shares("x", [1.0] * 20, [1.0] * 20, better="higher")
    assert alike.difference == 0.0
    assert alike.ci_low < 0 < alike.ci_high
    opposite = compare_shares("x", [0.0] * 40, [1.0] * 40, better="higher")
    assert (opposite.difference, opposite.ci_high) == (1.0, 1.0)
    assert 0 < opposite.ci_low < 1
    assert opposite.verdict == "better"
    one = compare_means("x", [1.0], [3.0], better="higher", unit="points")
    assert (one.difference, one.ci_low, one.verdict) == (2.0, None, "no difference shown")


def test_a_paired_interval_by_hand() -> None:
    """5 of 100 gained, 1 lost: Wilson's intervals of both shares, put together as Newcombe does."""
    base = [0.0] * 5 + [1.0] + [1.0] * 94
    found = compare_shares("x", base, [1.0] * 5 + [0.0] + [1.0] * 94, better="higher")
    gained, lost = share([1.0] * 5 + [0.0] * 95), share([1.0] + [0.0] * 99)
    correlation = -0.05 * 0.01 / math.sqrt(0.05 * 0.95 * 0.01 * 0.99)
    down, up = 0.05 - gained.low, lost.high - 0.01
    assert found.difference == pytest.approx(0.04)
    assert found.ci_low == pytest.approx(0.04 - math.sqrt(down**2 + up**2 - 2 * correlation * down * up))


@pytest.mark.parametrize(("gained", "lost"), [(0.03, 0.0), (0.1, 0.1), (0.3, 0.2)])
def test_paired_intervals_cover_the_truth_as_often_as_they_say(gained: float, lost: float) -> None:
    drawn = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        change = drawn.choice([1.0, -1.0, 0.0], p=[gained, lost, 1 - gained - lost], size=100)
        found = compare_shares("x", np.maximum(-change, 0), np.maximum(change, 0), better="higher")
        inside += found.ci_low <= gained - lost <= found.ci_high
    assert inside / 300 >= 0.925  # 0.855 for the first of these, when the difference had a t interval


def test_equal_changes_of_few_prompts_prove_nothing() -> None:
    alike = compare_means("rating", [5.0, 5.0], [6.0, 6.0], better="higher", unit="points")
    assert (alike.difference, alike.ci_low, alike.verdict) == (1.0, None, "no difference shown")


def test_answers_that_were_cut_off_are_reported_with_the_tokens_that_are_usual() -> None:
    assert cut_off({"base": [True, True], "aligned": [True, True]}, usual=1024) == []
    (note,) = cut_off({"base": [True, False], "aligned": [True, True]}, usual=1024)
    assert note.startswith("1 answer of the baseline and 0 of the aligned model were cut before their end")
    assert "--max_new_tokens 1024" in note


def test_groups_share_the_doubt() -> None:
    seen = []

    def compare(name: str, members: Any, confidence: float) -> Comparison:
        seen.append((name, list(members), round(confidence, 6)))
        return comparison(confidence=confidence)

    by_group({"a": [0, 2], "b": [1]}, compare, 0.95)
    assert seen == [("a", [0, 2], 0.975), ("b", [1], 0.975)]


def test_the_summary_of_a_suite(tmp_path: Path) -> None:
    better = comparison(name="second", difference=0.1, aligned=0.6, ci_low=0.05, ci_high=0.15)
    neither = comparison(name="third", ci_high=0.2)
    result = SuiteResult(
        "any", [comparison(), better, neither], breakdown=[comparison(name="part")], notes=["Mind."], part=Part(2, 7)
    )
    result.write(tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["headline"] == {
        "name": "figure (only 2 of 7)",
        "base": 0.5,
        "aligned": 0.4,
        "difference": -0.1,
        "ci_low": -0.15,
        "ci_high": -0.05,
        "better": "higher",
    }
    assert [sentence.split(":")[0] for sentence in written["worse"]] == ["Figure", "Part"]
    assert written["sentences"][0].startswith("any (only 2 of 7): Figure")
    assert written["sentences"][1].startswith("Got worse: Part")
    assert written["sentences"][-1] == "Mind."
    assert not any("Nothing" in sentence for sentence in written["sentences"])
    fine = SuiteResult("any", [better])
    assert "No metric of any got worse beyond chance." in fine.sentences()
    assert [row[0] for row in result.table()] == ["figure", "second", "third", "  part"]


def test_a_look_is_spread_over_all_rows() -> None:
    rows = [{"id": i} for i in range(10)]
    assert [row["id"] for row in look_at_some(rows, 5)[0]] == [0, 2, 4, 6, 8]
    assert look_at_some(rows, 5)[1] == Part(5, 10)
    assert look_at_some(rows, 10) == (rows, None)
    assert look_at_some(rows, None) == (rows, None)
