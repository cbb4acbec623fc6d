"""Win rates at equal length, as in AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475).

Judges and people prefer longer answers, so a model may win by length alone. A logistic regression explains the outcomes
by a constant, `tanh(length difference / its standard deviation)` and, if given, the difficulty of the prompt; the
length-controlled rate is its prediction for a length difference of zero. An outcome
is a number in 0..1; a tie counts as half a win and half a loss.

The ridge on the length coefficient is chosen by cross-validation over prompts: if length does not help to predict
outcomes of held-out prompts, the coefficient goes to zero and the rate to the plain one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preftune.errors import DatasetError, RequestError
from preftune.statistics.intervals import Floats, number_clusters, quantile, win_rate
from preftune.statistics.profile_likelihood import Fitted, design_effect, profile_interval, sigmoid, spread_of

RIDGES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
"""Strengths of the penalty `ridge/2 * coefficient^2` on the summed log-likelihood that cross-validation tries."""
_KEEPS_FINITE = 1e-3
"""Ridge on the other coefficients, so that the fit is finite if all outcomes are equal."""
_ONE_SIDED = 0.95
_STEPS = 50
_CONVERGED = 1e-9


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A win rate at equal length, and the plain one. Rates are shares of 1."""

    win_rate: float
    """The predicted rate at a length difference of zero, ties counted half."""
    ci_low: float
    ci_high: float
    raw_win_rate: float
    length_coefficient: float
    """Log-odds per unit of tanh(difference / sd); above 0 the longer answer is preferred."""
    ridge: float
    """The strength that cross-validation chose."""
    folds: int
    cross_validated_loss: float
    """Loss with length on prompts that were not fitted, nats per comparison."""
    plain_loss: float
    """The same with only a constant. Length has an effect only if the loss with length is lower."""
    length_sd: float
    """Standard deviation of the length differences, in the given unit."""
    longer: float
    """Share of comparisons in which the aligned answer is longer."""
    shorter: float
    n: int
    prompts: int
    confidence: float = 0.95

    @property
    def extrapolated(self) -> bool:
        """Whether nearly all differences have the same sign, so that hardly any answers have equal length."""
        return self.n > 1 and max(self.longer, self.shorter) > _ONE_SIDED

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "extrapolated": self.extrapolated, "sentence": self.sentence()}

    def sentence(self) -> str:
        """Both rates, and the meaning of their difference."""
        interval = f"{self.confidence:.0%} interval {self.ci_low:.1%} to {self.ci_high:.1%}"
        rates = f"At equal length it wins {self.win_rate:.1%} ({interval}) instead of {self.raw_win_rate:.1%}"
        if self.extrapolated:
            side = "longer" if self.longer > self.shorter else "shorter"
            return f"{rates}; nearly all of its answers are {side}, so this is an extrapolation."
        if self.cross_validated_loss >= self.plain_loss:
            return f"{rates}: length does not explain the outcomes."
        preferred = "longer" if self.length_coefficient > 0 else "shorter"
        return f"{rates}: the judge prefers {preferred} answers, and this rate excludes that preference."


def length_controlled(
    outcomes: Sequence[float] | Floats,
    length_differences: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    difficulty: Sequence[float] | Floats | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    folds: int = 5,
) -> LengthControlled:
    """The win rate at equal length, with a profile likelihood interval clustered by prompt.

    Args:
        outcomes: per comparison the share that the aligned model wins, 0..1: 1, 0.5 for a tie, 0, or a probability.
        length_differences: aligned minus base, in tokens or letters.
        clusters: the prompt of each comparison; default: every comparison has its own.
        difficulty: difficulty of the prompt, in any unit: for example the base model's log-odds against a third model.
        folds: number of folds of the cross-validation; fewer if there are fewer prompts.
    Raises: DatasetError if there are no values, for invalid values, or for lists of different length; RequestError for
        impossible settings.
    """
    plain = win_rate(outcomes, clusters, confidence=confidence)
    outcome_N = np.asarray(outcomes, dtype=np.float64)
    length_N = np.asarray(length_differences, dtype=np.float64)
    hard_N = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    for name, values in (("length_differences", length_N), ("difficulty", hard_N)):
        if values is not None and (values.shape != outcome_N.shape or not bool(np.isfinite(values).all())):
            raise DatasetError(f"{name}: give one finite number for each outcome ({len(outcome_N)} in all).")
    if folds < 2:
        raise RequestError(f"folds={folds}: cross-validation needs at least 2. 5 is usual.")
    cluster_N, prompts = number_clusters(len(outcome_N), clusters)
    features = _features(length_N, hard_N)
    used = min(folds, prompts)
    ridge, loss, plain_loss = _choose_ridge(features, outcome_N, cluster_N, prompts, used, seed)
    weight_1N = np.ones((1, len(outcome_N)))
    coefficients_P = _fit(features, outcome_N, weight_1N, ridge)[0]
    rate = float(_at_equal_length(features, coefficients_P[None], weight_1N)[0])
    low, high = plain.ci_low, plain.ci_high
    if plain.spread == 0 or prompts < 2:  # nothing to explain
        rate = plain.win_rate
    else:
        low, high = _interval(features, outcome_N, cluster_N, prompts, confidence)
    return LengthControlled(
        win_rate=rate,
        ci_low=min(low, rate),
        ci_high=max(high, rate),
        raw_win_rate=plain.win_rate,
        length_coefficient=float(coefficients_P[1]),
        ridge=ridge,
        folds=used,
        cross_validated_loss=loss,
        plain_loss=plain_loss,
        length_sd=float(length_N.std()),
        longer=float((length_N > 0).mean()),
        shorter=float((length_N < 0).mean()),
        n=plain.n,
        prompts=prompts,
        confidence=confidence,
    )


def _choose_ridge(
    features_NP: Floats, outcome_N: Floats, cluster_N: Any, prompts: int, folds: int, seed: int
) -> tuple[float, float, float]:
    """The ridge with the lowest loss on prompts that were not fitted, that loss, and the loss without length."""
    if prompts < 2 or not features_NP[:, 1].any():  # nothing to validate on, or nothing that differs in length
        loss = _log_loss(outcome_N, np.full_like(outcome_N, outcome_N.mean()))
        return RIDGES[-1], loss, loss
    fold_N = np.random.default_rng(seed).permutation(prompts)[cluster_N] % folds
    losses = [_validated(features_NP, outcome_N, fold_N, folds, ridge) for ridge in RIDGES]
    plain_loss = _validated(np.delete(features_NP, 1, axis=1), outcome_N, fold_N, folds, None)
    return RIDGES[int(np.argmin(losses))], min(losses), plain_loss


def _features(length_N: Floats, hard_N: Floats | None) -> Floats:
    """Columns: 1, tanh(length / sd), and the centred difficulty in standard deviations. Shape (N, 2 or 3)."""
    sd = float(length_N.std())
    if sd == 0:  # the same difference everywhere cannot be distinguished from the constant
        columns = [np.ones_like(length_N), np.zeros_like(length_N)]
    else:
        columns = [np.ones_like(length_N), np.tanh(length_N / sd)]
    if hard_N is not None:
        columns.append((hard_N - hard_N.mean()) / (float(hard_N.std()) or 1.0))
    return np.stack(columns, axis=1)


def _fit(features_NP: Floats, outcome_N: Floats, weight_BN: Floats, ridge: float | None, tilt: float = 0.0) -> Floats:
    """Penalised maximum likelihood by Newton's method, for B weightings of the rows at once. Shape (B, P).

    Args:
        ridge: ridge on the length coefficient; None if there is no such column.
        tilt: added to the slope of the constant.
    """
    columns = features_NP.shape[1]
    penalty_P = np.full(columns, _KEEPS_FINITE)
    if ridge is not None:
        penalty_P[1] = ridge
    products_NQ = (features_NP[:, :, None] * features_NP[:, None, :]).reshape(len(features_NP), -1)
    coefficients_BP = np.zeros((len(weight_BN), columns))
    for _ in range(_STEPS):
        chance_BN = sigmoid(coefficients_BP @ features_NP.T)
        gradient_BP = (weight_BN * (outcome_N - chance_BN)) @ features_NP - penalty_P * coefficients_BP
        gradient_BP[:, 0] += tilt
        curvature = (weight_BN * chance_BN * (1 - chance_BN)) @ products_NQ
        hessian_BPP = curvature.reshape(-1, columns, columns) + np.diag(penalty_P)
        step_BP = np.linalg.solve(hessian_BPP, gradient_BP[:, :, None])[:, :, 0]
        coefficients_BP += np.clip(step_BP, -2.0, 2.0)  # outcomes that are nearly all alike would overshoot
        if float(np.abs(step_BP).max()) < _CONVERGED:
            break
    return coefficients_BP


def _at_equal_length(features_NP: Floats, coefficients_BP: Floats, weight_BN: Floats) -> Floats:
    """The mean prediction with the length column at zero, shape (B,)."""
    level_NP = features_NP.copy()
    level_NP[:, 1] = 0.0
    if level_NP.shape[1] == 2:
        return sigmoid(coefficients_BP[:, 0])
    mean: Floats = (weight_BN * sigmoid(coefficients_BP @ level_NP.T)).sum(axis=1) / weight_BN.sum(axis=1)
    return mean


def _validated(features_NP: Floats, outcome_N: Floats, fold_N: Any, folds: int, ridge: float | None) -> float:
    """Mean log loss on the fold that was left out, in nats per comparison."""
    weight_BN = (fold_N[None, :] != np.arange(folds)[:, None]).astype(np.float64)
    coefficients_BP = _fit(features_NP, outcome_N, weight_BN, ridge)
    chance_N = sigmoid((features_NP * coefficients_BP[fold_N]).sum(axis=1))
    return _log_loss(outcome_N, chance_N)


def _interval(
    features_NP: Floats, outcome_N: Floats, cluster_N: Any, prompts: int, confidence: float
) -> tuple[float, float]:
    """The plausible rates at equal length, by the constant's profile likelihood.

    There is no ridge on length here: the effect of length is uncertain too, and if length alone determines the outcome,
    hardly any rate is excluded."""
    once_1N = np.ones((1, len(outcome_N)))
    columns = features_NP.shape[1]
    fitted_P = _fit(features_NP, outcome_N, once_1N, _KEEPS_FINITE)[0]
    chance_N = sigmoid(features_NP @ fitted_P)
    slope_GP = np.zeros((prompts, columns))
    np.add.at(slope_GP, cluster_N, (outcome_N - chance_N)[:, None] * features_NP)
    hessian_PP = (features_NP * (chance_N * (1 - chance_N))[:, None]).T @ features_NP + _KEEPS_FINITE * np.eye(columns)
    effect = design_effect(slope_GP, hessian_PP, np.eye(columns)[0], spread=spread_of(outcome_N))

    def tilted(tilt: float) -> Fitted:
        tilted_P = _fit(features_NP, outcome_N, once_1N, _KEEPS_FINITE, tilt)[0]
        return Fitted(float(tilted_P[0]), -len(outcome_N) * _log_loss(outcome_N, sigmoid(features_NP @ tilted_P)))

    ends = profile_interval(tilted, drop=effect * quantile(confidence, max(2, prompts - columns + 1)) ** 2 / 2)
    level = float(_at_equal_length(features_NP, fitted_P[None], once_1N)[0])
    shift = math.log(level / (1 - level)) - float(fitted_P[0])
    low, high = (float(sigmoid(np.array(end + shift))) for end in ends)
    return low, high


def _log_loss(outcome_N: Floats, chance_N: Floats) -> float:
    safe = np.clip(chance_N, 1e-12, 1 - 1e-12)
    loss = -(outcome_N * np.log(safe) + (1 - outcome_N) * np.log1p(-safe))
    return float(loss.mean()) if math.isfinite(float(loss.mean())) else 0.0
