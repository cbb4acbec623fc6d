"""Win rates at equal length, as in AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475), for prompts of one's own.

Judges and people prefer longer answers, so a model may win by length alone. A logistic regression explains the outcomes
by a constant, `tanh(length difference / its standard deviation)` and, if given, the difficulty of the prompt; the
length-controlled rate is its prediction for a length difference of zero. An outcome is a number in 0..1; a tie counts
as half a win and half a loss.

The penalty (L1) on the length coefficient is chosen by cross-validation over prompts, as by AlpacaEval's authors: if
length does not help to predict outcomes of held-out prompts, the coefficient goes to zero and the rate to the plain
one. Unlike theirs, the other coefficients have no penalty: on 64 to 200 prompts it pulls the rate of a better model 2
to 5 points towards 50%. Their estimator itself is `published_length_control`.

Where nearly all answers are longer, or nearly all shorter, hardly any data are near equal length: the result says
"extrapolated" and has no rate, only an interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from preftune.errors import DatasetError, RequestError
from preftune.statistics.clusters import Floats, number_clusters
from preftune.statistics.intervals import win_rate
from preftune.statistics.l1_logistic import RIDGE, STRENGTHS, Rows, choose, fit, left_out_loss
from preftune.statistics.profile_likelihood import Fitted, allowed_drop, profile_interval, sigmoid, spread_of
from preftune.storage.untrusted_json import at, number

_ONE_SIDED = 0.95


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A win rate at equal length, and the plain one. Rates are shares of 1."""

    win_rate: float | None
    """The predicted rate at a length difference of zero, ties counted half; None if it would be an extrapolation."""
    ci_low: float
    ci_high: float
    raw_win_rate: float
    length_coefficient: float
    """Log-odds per unit of tanh(difference / sd); above 0 the longer answer is preferred."""
    strength: float
    """The strength that cross-validation chose; a weak penalty has a high one."""
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
        return self.win_rate is None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "extrapolated": self.extrapolated, "sentence": self.sentence()}

    @classmethod
    def from_dict(cls, values: object) -> LengthControlled | None:
        """What `to_dict` wrote; None if a number of it is missing."""
        found = {one.name: number(at(values, one.name)) for one in fields(cls)}
        if None in (value for name, value in found.items() if name != "win_rate"):
            return None
        return cls(**found)  # type: ignore[arg-type]  # whole numbers come back as floats

    def sentence(self) -> str:
        """Both rates, and the meaning of their difference."""
        interval = f"{self.confidence:.0%} interval {self.ci_low:.1%} to {self.ci_high:.1%}"
        if self.win_rate is None:
            side = "longer" if self.longer > self.shorter else "shorter"
            return (
                f"Nearly all of its answers are {side}, so a win rate at equal length would be an extrapolation: the "
                f"data leave it anywhere from {self.ci_low:.1%} to {self.ci_high:.1%}."
            )
        rates = f"At equal length it wins {self.win_rate:.1%} ({interval}) instead of {self.raw_win_rate:.1%}"
        if self.length_coefficient == 0 or self.cross_validated_loss >= self.plain_loss:
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
    rows = Rows(features, outcome_N, np.ones_like(outcome_N))
    strength, loss, plain_loss = _choose(rows, cluster_N, prompts, used, seed)
    coefficients_P = fit(rows, strength, free=_free(features))
    rate = _at_equal_length(features, coefficients_P)
    low, high = plain.ci_low, plain.ci_high
    if plain.spread == 0 or prompts < 2:  # nothing to explain
        rate = plain.win_rate
    else:
        low, high = _interval(rows, cluster_N, confidence)
    one_sided = plain.n > 1 and max((length_N > 0).mean(), (length_N < 0).mean()) > _ONE_SIDED
    return LengthControlled(
        win_rate=None if one_sided else rate,
        ci_low=min(low, rate),
        ci_high=max(high, rate),
        raw_win_rate=plain.win_rate,
        length_coefficient=float(coefficients_P[1]),
        strength=strength,
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


def _free(features_NP: Floats) -> list[int]:
    """All columns but the length."""
    return [place for place in range(features_NP.shape[1]) if place != 1]


def _choose(rows: Rows, cluster_N: Any, prompts: int, folds: int, seed: int) -> tuple[float, float, float]:
    """The strength with the lowest loss on prompts that were not fitted, that loss, and the loss without length."""
    if prompts < 2 or not rows.features_NP[:, 1].any():  # nothing to validate on, or nothing that differs in length
        loss = _log_loss(rows.outcome_N, np.full_like(rows.outcome_N, rows.outcome_N.mean()))
        return STRENGTHS[0], loss, loss
    fold_N = np.random.default_rng(seed).permutation(prompts)[cluster_N] % folds
    free = _free(rows.features_NP)
    chosen = choose(rows, fold_N, folds, free=free)
    plain = rows._replace(features_NP=rows.features_NP[:, free])
    return chosen.strength, chosen.loss, left_out_loss(plain, fold_N, folds, free=range(len(free)))


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


def _at_equal_length(features_NP: Floats, coefficients_P: Floats) -> float:
    """The mean prediction with the length column at zero."""
    level_NP = features_NP.copy()
    level_NP[:, 1] = 0.0
    return float(sigmoid(level_NP @ coefficients_P).mean())


def _interval(rows: Rows, cluster_N: Any, confidence: float) -> tuple[float, float]:
    """The plausible rates at equal length, by the constant's profile likelihood.

    There is no penalty on length here: the effect of length is uncertain too, and if length alone determines the
    outcome, hardly any rate is excluded."""
    features_NP, outcome_N, columns = rows.features_NP, rows.outcome_N, rows.features_NP.shape[1]
    fitted_P = fit(rows, 1.0, free=range(columns))
    chance_N = sigmoid(features_NP @ fitted_P)
    hessian_PP = (features_NP * (chance_N * (1 - chance_N))[:, None]).T @ features_NP + RIDGE * np.eye(columns)
    direction_P = np.linalg.solve(hessian_PP, np.eye(columns)[0])
    drop = allowed_drop(
        (outcome_N - chance_N) * (features_NP @ direction_P),
        cluster_N.tolist(),
        float(direction_P[0]),
        spread=spread_of(outcome_N),
        confidence=confidence,
        parameters=columns,
    )

    def tilted(tilt: float) -> Fitted:
        tilted_P = fit(rows, 1.0, free=range(columns), tilt=tilt, start=fitted_P)
        return Fitted(float(tilted_P[0]), -len(outcome_N) * _log_loss(outcome_N, sigmoid(features_NP @ tilted_P)))

    ends = profile_interval(tilted, drop=drop)
    level = _at_equal_length(features_NP, fitted_P)
    shift = math.log(level / (1 - level)) - float(fitted_P[0])
    low, high = (float(sigmoid(np.array(end + shift))) for end in ends)
    return low, high


def _log_loss(outcome_N: Floats, chance_N: Floats) -> float:
    safe = np.clip(chance_N, 1e-12, 1 - 1e-12)
    loss = -(outcome_N * np.log(safe) + (1 - outcome_N) * np.log1p(-safe))
    return float(loss.mean()) if math.isfinite(float(loss.mean())) else 0.0
