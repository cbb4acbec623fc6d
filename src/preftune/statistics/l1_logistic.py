"""Logistic regression with an L1 penalty whose strength is chosen by cross-validation; outcomes are numbers in 0..1.

The objective is `|coefficients| + strength * sum of weight * cross entropy`, the one of liblinear, which AlpacaEval's
length control minimises; a weak penalty has a high strength. An outcome between 0 and 1 is a row of either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from preftune.statistics.clusters import Floats
from preftune.statistics.profile_likelihood import sigmoid

STRENGTHS: tuple[float, ...] = tuple(10.0 ** (-4 + 8 * step / 9) for step in range(10))
"""Ten strengths from 1e-4 to 1e4, evenly in the logarithm."""
RIDGE = 1e-3
"""Ridge on free coefficients, so that the fit is finite if all outcomes are equal. It is in units of the cross entropy:
otherwise a strong penalty would shrink them."""
_STEPS, _SWEEPS = 60, 200
_CONVERGED = 1e-10
_SETTLED = 1e-8
"""Relative gain of a Newton step below which it was the last: the next one would gain its square."""


class Rows(NamedTuple):
    """What is fitted: N rows of P features."""

    features_NP: Floats
    outcome_N: Floats
    weight_N: Floats

    def where(self, kept_N: Any) -> Rows:
        return Rows(self.features_NP[kept_N], self.outcome_N[kept_N], self.weight_N[kept_N])


class Chosen(NamedTuple):
    """A strength, and its mean loss on the rows that were not fitted, in nats."""

    strength: float
    loss: float


def fit(
    rows: Rows, strength: float, *, free: Sequence[int] = (), start: Floats | None = None, tilt: float = 0.0
) -> Floats:
    """The coefficients, shape (P,), by Newton steps that soften each coefficient in turn.

    Args:
        free: columns without a penalty.
        start: coefficients to start from, for example those of a neighbouring strength.
        tilt: added to the slope of the first coefficient, for its profile likelihood.
    """
    features_NP, columns = rows.features_NP, rows.features_NP.shape[1]
    found_P = np.zeros(columns) if start is None else start.copy()
    penalty_P, ridge_P = np.ones(columns), np.zeros(columns)
    penalty_P[list(free)], ridge_P[list(free)] = 0.0, strength * RIDGE

    def objective(at_P: Floats) -> float:
        eta_N = features_NP @ at_P
        loss = float((rows.weight_N * (np.logaddexp(0, eta_N) - rows.outcome_N * eta_N)).sum())
        kept = float(penalty_P @ np.abs(at_P)) + float(ridge_P @ np.square(at_P)) / 2
        return kept + strength * loss - tilt * float(at_P[0])

    value = objective(found_P)
    for _ in range(_STEPS):
        chance_N = sigmoid(features_NP @ found_P)
        slope_P = strength * features_NP.T @ (rows.weight_N * (chance_N - rows.outcome_N)) + ridge_P * found_P
        slope_P[0] -= tilt
        curve_N = rows.weight_N * chance_N * (1 - chance_N)
        hessian_PP = strength * (features_NP.T * curve_N) @ features_NP + np.diag(ridge_P + 1e-10)
        step_P = _newton_step(found_P, slope_P, hessian_PP, penalty_P)
        size = 1.0
        while size > 1e-8 and objective(found_P + size * step_P) > value + 1e-12:
            size /= 2
        if size <= 1e-8:
            break
        found_P = found_P + size * step_P
        before, value = value, objective(found_P)
        if before - value < _SETTLED * max(min(1.0, strength), abs(before)):
            break
    return found_P


def _newton_step(at_P: Floats, slope_P: Floats, hessian_PP: Floats, penalty_P: Floats) -> Floats:
    """Minimises the quadratic model with its penalty, one coefficient after the other until none moves.

    Where the same coefficients stay at zero and the others keep their signs, one linear system has the solution; it is
    tried first, because features that are nearly collinear need many sweeps.
    """
    step_P, active_P = np.zeros_like(at_P), (penalty_P == 0) | (at_P != 0)
    sign_P = penalty_P * np.sign(at_P)
    wanted_P = -(slope_P + sign_P)[active_P]
    step_P[active_P] = np.linalg.solve(hessian_PP[np.ix_(active_P, active_P)], wanted_P)
    kept = bool(((at_P + step_P) * sign_P >= 0).all())
    if kept and bool((np.abs(slope_P + hessian_PP @ step_P)[~active_P] <= penalty_P[~active_P]).all()):
        return step_P
    step_P = np.zeros_like(at_P)
    for _ in range(_SWEEPS):
        moved = 0.0
        for place, curve in enumerate(np.diag(hessian_PP)):
            now = at_P[place] + step_P[place]
            wanted = now - (slope_P[place] + hessian_PP[place] @ step_P) / curve
            softened = np.sign(wanted) * max(abs(wanted) - penalty_P[place] / curve, 0.0)
            moved = max(moved, abs(float(softened - now)))
            step_P[place] += softened - now
        if moved < _CONVERGED:
            break
    return step_P


def choose(rows: Rows, fold_N: Any, folds: int, *, free: Sequence[int] = ()) -> Chosen:
    """The strength with the lowest loss on the folds that were left out; of equal ones the strongest penalty.

    Args:
        fold_N: the fold of each row, 0 to `folds` - 1.
    """
    losses = np.zeros(len(STRENGTHS))
    for fold in range(folds):
        fitted, left_out = rows.where(fold_N != fold), rows.where(fold_N == fold)
        start = None
        for place, strength in enumerate(STRENGTHS):
            start = fit(fitted, strength, free=free, start=start)
            losses[place] += _loss(left_out, start)
    best = int(np.argmin(losses))
    return Chosen(STRENGTHS[best], float(losses[best]) / len(rows.outcome_N))


def left_out_loss(rows: Rows, fold_N: Any, folds: int, *, free: Sequence[int]) -> float:
    """Mean loss of a fit with free columns only, on the folds that were left out, in nats."""
    losses = [_loss(rows.where(fold_N == f), fit(rows.where(fold_N != f), 1.0, free=free)) for f in range(folds)]
    return sum(losses) / len(rows.outcome_N)


def _loss(rows: Rows, coefficients_P: Floats) -> float:
    eta_N = rows.features_NP @ coefficients_P
    return float((rows.weight_N * (np.logaddexp(0, eta_N) - rows.outcome_N * eta_N)).sum())
