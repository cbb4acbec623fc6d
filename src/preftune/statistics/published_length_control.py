"""AlpacaEval 2's length-controlled win rate as its authors run it (Dubois et al. 2024, arXiv:2404.04475).

The log-odds that the model wins are `a * tanh(standardised length difference) + b * difficulty + c`; the rate is the
mean prediction at equal length. Every coefficient has an L1 penalty whose strength is cross-validated. Rows of two
baselines that were made gameable on purpose (the reference model asked to be concise, and to be verbose) are fitted
along, without `c` and with a tenth of the weight each: they say what length alone does to the judge.

`length_control` is for prompts of one's own, for which neither difficulties nor such baselines are known. The
difficulties and the outcomes of the gameable baselines are not in the package; `solve_difficulty` and `gamed_rows`
recover them from published predictions and coefficients (benchmarks/alpaca_eval_published.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from preftune.errors import DatasetError
from preftune.statistics.clusters import Floats
from preftune.statistics.l1_logistic import Rows, choose, fit
from preftune.statistics.profile_likelihood import sigmoid

GAMED_WEIGHT = 0.2
"""Weight of all rows of the gameable baselines together, in rows of the model."""
_FOLDS = 5


class Coefficients(NamedTuple):
    """Of one model: length, difficulty, and the model itself."""

    length: float
    difficulty: float
    model: float


class PublishedRate(NamedTuple):
    """A length-controlled win rate, as a share of 1."""

    win_rate: float
    standard_error: float
    """Of the mean prediction over prompts. It leaves out that the coefficients are estimates."""
    coefficients: Coefficients
    strength: float
    """The cross-validated strength; a weak penalty has a high one."""


def length_feature(base_letters: Sequence[float] | Floats, letters: Sequence[float] | Floats) -> Floats:
    """tanh of the difference of lengths (the reference's minus the model's) in standard deviations, shape (N,)."""
    difference_N = np.asarray(base_letters, dtype=np.float64) - np.asarray(letters, dtype=np.float64)
    sd = float(difference_N.std(ddof=1)) if len(difference_N) > 1 else 0.0
    return np.tanh(difference_N / sd) if sd > 0 else np.zeros_like(difference_N)


def published_rate(
    outcomes: Sequence[float] | Floats,
    base_letters: Sequence[float] | Floats,
    letters: Sequence[float] | Floats,
    difficulty: Sequence[float] | Floats,
    gamed: Rows,
) -> PublishedRate:
    """The rate of one model against the reference.

    Args:
        outcomes: per instruction the judge's probability that the model's answer is better.
        base_letters, letters: lengths of the reference's and of the model's answers.
        difficulty: of the instructions.
        gamed: rows of the gameable baselines, from `gamed_rows`.
    Raises: DatasetError for lists of different length, or an outcome outside 0..1.
    """
    outcome_N, hard_N = np.asarray(outcomes, dtype=np.float64), np.asarray(difficulty, dtype=np.float64)
    if not len(outcome_N) == len(base_letters) == len(letters) == len(hard_N) or not len(outcome_N):
        raise DatasetError("Length control needs one outcome, two lengths and one difficulty for each instruction.")
    if not bool(((outcome_N >= 0) & (outcome_N <= 1)).all()):
        raise DatasetError("Outcomes must lie between 0 (lost) and 1 (won), 0.5 for a tie; found one outside.")
    own_NP = np.stack([length_feature(base_letters, letters), hard_N, np.ones_like(hard_N)], axis=1)
    rows = Rows(
        np.concatenate([gamed.features_NP, own_NP]),
        np.concatenate([gamed.outcome_N, outcome_N]),
        np.concatenate([gamed.weight_N, np.ones_like(outcome_N)]),
    )
    fold_N = np.arange(len(rows.outcome_N))[::-1] % _FOLDS
    strength = choose(rows, fold_N, _FOLDS).strength
    found = Coefficients(*fit(rows, strength).tolist())
    level_N = sigmoid(found.model + found.difficulty * hard_N)
    error = float(level_N.std(ddof=1)) / len(level_N) ** 0.5 if len(level_N) > 1 else 0.0
    return PublishedRate(float(level_N.mean()), error, found, strength)


def solve_difficulty(predictions: Iterable[tuple[Sequence[float] | Floats, Coefficients]]) -> Floats:
    """The difficulties from published predictions at equal length, which are `sigmoid(c + b * difficulty)`.

    Args:
        predictions: of one or several models, with their published coefficients; the mean is taken.
    """
    solved = []
    for predicted, published in predictions:
        chance_N = np.asarray(predicted, dtype=np.float64)
        solved.append((np.log(chance_N) - np.log1p(-chance_N) - published.model) / published.difficulty)
    mean_N: Floats = np.mean(solved, axis=0)
    return mean_N


def gamed_rows(
    baselines: Sequence[tuple[Sequence[float] | Floats, Coefficients]],
    base_letters: Sequence[float] | Floats,
    difficulty: Floats,
) -> Rows:
    """Rows of the gameable baselines where their judgements are not available: what their published coefficients say.

    The likelihood depends on outcomes only through their sums with the features, and at the fitted coefficients these
    sums are those of the predictions: the predictions can stand for the outcomes.

    Args:
        baselines: lengths of each one's answers, and its published coefficients.
        base_letters: lengths of the reference's answers.
    """
    features, outcomes = [], []
    for letters, published in baselines:
        length_N = length_feature(base_letters, letters)
        outcomes.append(sigmoid(published.length * length_N + published.difficulty * difficulty + published.model))
        features.append(np.stack([length_N, difficulty, np.zeros_like(difficulty)], axis=1))
    weight_N = np.full(len(baselines) * len(difficulty), GAMED_WEIGHT / max(1, len(baselines)))
    return Rows(np.concatenate(features), np.concatenate(outcomes), weight_N)
