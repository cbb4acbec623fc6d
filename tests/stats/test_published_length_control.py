"""AlpacaEval's own estimator, on made-up instructions, and its inputs solved for where they are not available."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preftune.errors import DatasetError
from preftune.statistics.l1_logistic import Rows
from preftune.statistics.length_control import length_controlled
from preftune.statistics.published_length_control import (
    Coefficients,
    PublishedRate,
    gamed_rows,
    length_feature,
    published_rate,
    solve_difficulty,
)

INSTRUCTIONS = 400
LIKES_LENGTH = -1.8
"""Of the judge, per unit of tanh(reference minus model): the longer answer is preferred."""


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x)))


class Made:
    """Instructions with difficulties, a reference's lengths, and two gameable baselines."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.difficulty = self.rng.normal(0, 1, INSTRUCTIONS)
        self.reference = self.rng.uniform(400, 2500, INSTRUCTIONS)
        self.baselines = [self.model(0.2, 1.3), self.model(-0.3, 0.5)]  # verbose, concise
        features = [self.features(letters, own=0.0) for letters, _ in self.baselines]
        weights = np.full(2 * INSTRUCTIONS, 0.1)
        outcomes = np.concatenate([outcome for _, outcome in self.baselines])
        self.gamed = Rows(np.concatenate(features), outcomes, weights)

    def features(self, letters: Any, own: float = 1.0) -> Any:
        ones = np.full(INSTRUCTIONS, own)
        return np.stack([length_feature(self.reference, letters), self.difficulty, ones], axis=1)

    def model(self, quality: float, times: float) -> tuple[Any, Any]:
        """Lengths, and the judge's probabilities."""
        letters = self.reference * times * np.exp(self.rng.normal(0, 0.35, INSTRUCTIONS))
        chance = sigmoid(self.features(letters) @ [LIKES_LENGTH, 0.9, quality])
        return letters, np.clip(chance + self.rng.normal(0, 0.1, INSTRUCTIONS), 0, 1)

    def rate(self, letters: Any, outcomes: Any, gamed: Rows | None = None) -> PublishedRate:
        return published_rate(outcomes, self.reference, letters, self.difficulty, gamed or self.gamed)

    def truth(self, quality: float) -> float:
        return float(sigmoid(quality + 0.9 * self.difficulty).mean())


@pytest.mark.parametrize(("quality", "times"), [(0.5, 1.0), (-1.5, 0.6), (-0.5, 1.8), (0.0, 3.0)])
def test_the_planted_rate_is_found(quality: float, times: float) -> None:
    """Also of a model whose answers are nearly all longer: the gameable baselines say what length does."""
    made = Made()
    letters, outcomes = made.model(quality, times)
    found = made.rate(letters, outcomes)
    assert found.win_rate == pytest.approx(made.truth(quality), abs=0.035)
    assert found.coefficients.length < -1
    if times == 3.0:
        assert length_controlled(outcomes, letters - made.reference).win_rate is None


def test_inputs_that_are_not_available_are_solved_for() -> None:
    made = Made(1)
    rates = [made.rate(*made.model(quality, 1.2)) for quality in (0.3, -1.0)]
    predicted = [sigmoid(r.coefficients.model + r.coefficients.difficulty * made.difficulty) for r in rates]
    published = [rate.coefficients for rate in rates]
    difficulty = solve_difficulty(zip(predicted, published, strict=True))
    assert difficulty == pytest.approx(made.difficulty, abs=1e-9)
    fitted = [made.rate(*baseline).coefficients for baseline in made.baselines]
    letters = [lengths for lengths, _ in made.baselines]
    gamed = gamed_rows(list(zip(letters, fitted, strict=True)), made.reference, difficulty)
    sums = [rows.features_NP.T @ (rows.weight_N * rows.outcome_N) for rows in (gamed, made.gamed)]
    assert sums[0] == pytest.approx(sums[1], abs=2.0)  # of 80 rows' weight
    for quality, times in ((0.4, 1.0), (-2.0, 0.5), (0.0, 2.0)):
        model = made.model(quality, times)
        exact, solved = made.rate(*model), made.rate(*model, gamed)
        assert solved.win_rate == pytest.approx(exact.win_rate, abs=0.005)


def test_what_is_refused() -> None:
    made = Made()
    letters, outcomes = made.model(0.0, 1.0)
    with pytest.raises(DatasetError, match="one outcome, two lengths and one difficulty"):
        published_rate(outcomes[:5], made.reference, letters, made.difficulty, made.gamed)
    with pytest.raises(DatasetError, match="between 0"):
        published_rate(outcomes + 1, made.reference, letters, made.difficulty, made.gamed)
    assert not length_feature([3.0, 3.0], [1.0, 1.0]).any()
    assert Coefficients(1.0, 2.0, 3.0).model == 3.0
