"""Calibration: by hand, and what it says in words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preftune.statistics.calibration import calibration


def test_by_hand():
    # sure of 3/4: two right, one wrong; undecided: half right
    margin = math.log(3)
    found = calibration([margin, margin, -margin, 0.0])
    assert found.accuracy == pytest.approx((2 + 0.5) / 4)
    assert found.confidence == pytest.approx((3 * 0.75 + 0.5) / 4)
    assert [(bin.pairs, bin.confidence, bin.accuracy) for bin in found.bins] == [
        (1, pytest.approx(0.5), 0.5),
        (3, pytest.approx(0.75), pytest.approx(2 / 3)),
    ]
    assert found.error == pytest.approx(3 / 4 * (0.75 - 2 / 3))
    assert sum(bin["pairs"] for bin in found.to_dict()["bins"]) == 4


def test_scores_that_are_log_odds_are_calibrated_and_their_double_is_not():
    generator = np.random.default_rng(0)
    odds = generator.normal(size=20_000)
    chosen = np.where(generator.random(odds.size) < 1 / (1 + np.exp(-odds)), odds, -odds)  # the label by its odds
    honest = calibration(chosen.tolist())
    assert honest.error < 0.01
    assert "well calibrated" in honest.sentence()
    loud = calibration((4 * chosen).tolist())
    assert loud.accuracy == honest.accuracy
    assert loud.error > 0.1
    assert "overconfident" in loud.sentence()
    assert "underconfident" in calibration((chosen / 4).tolist()).sentence()


def test_certainty_has_a_bin_and_nothing_has_none():
    found = calibration([1000.0, -1000.0])
    assert found.bins[-1].high == 1.0
    assert found.error == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one pair"):
        calibration([])
