"""The simulations run, and the kept result says what docs/evaluation.md does."""

from __future__ import annotations

import json
from pathlib import Path

import interval_coverage
from record import RESULTS


def test_a_small_part_of_the_simulations(tmp_path: Path) -> None:
    assert interval_coverage.main(["-o", str(tmp_path), "--repetitions", "0.005"]) == 0
    found = json.loads((tmp_path / "interval_coverage.json").read_text(encoding="utf-8"))
    assert found["command"].endswith("--repetitions 0.005")
    assert len(found["anytime"]["sequences"]) == len(interval_coverage.KINDS)
    assert len(found["equal-length"]) == 2 * len(interval_coverage.EFFECTS) * len(interval_coverage.SHIFTS)
    assert len(found["unequal"]) == 4 * len(interval_coverage.LAYOUTS)
    shares = [cell["contained"] for cell in (*found["equal-length"], *found["methods"])]
    shares += [cell["mean"] for cell in found["unequal"]]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) / len(shares) > 0.85


def test_the_kept_intervals_are_what_they_are_called() -> None:
    """95%, less three standard errors of 400 simulations; a confidence sequence errs in at most 5%."""
    kept = json.loads((RESULTS / "interval_coverage.json").read_text(encoding="utf-8"))
    assert all(one["excluded"] <= 0.05 for one in kept["anytime"]["sequences"])
    assert kept["anytime"]["ordinary interval at every tenth prompt"]["excluded"] > 0.2
    assert all(one["contained"] >= 0.917 for one in kept["methods"])
    assert kept["methods"][-1]["by the interval over prompts alone"] < 0.5
    known = [one for one in kept["equal-length"] if one["mean rate less the true one"] is not None]
    assert all(abs(one["mean rate less the true one"]) < 0.04 for one in known)
    assert all(abs(one["mean rate less the true one"]) < 0.01 for one in known if one["log-odds of length"] == 0)
    assert all(one["least"] >= 0.917 and one["mean"] >= 0.945 for one in kept["unequal"])
    assert min(one["least of the plain variance"] for one in kept["unequal"]) < 0.7
