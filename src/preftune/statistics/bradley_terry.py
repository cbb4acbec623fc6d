"""Scores of several models from comparisons between them (Bradley and Terry 1952, Biometrika 39).

The chance that a beats b is `sigmoid(score_a - score_b)`; scores maximise the likelihood of all comparisons, where a
tie counts as half a win of each (as in Arena-Hard and the Chatbot Arena: Chiang et al. 2024, arXiv:2403.04132). Scores
are log-odds; `elo` is the same on the scale of chess, 400 points being odds of ten to one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components

from preftune.errors import DatasetError, RequestError
from preftune.statistics.clusters import Floats, number_clusters, quantile
from preftune.statistics.profile_likelihood import Fitted, allowed_drop, profile_interval, sigmoid, spread_of

ELO_PER_NAT = 400 / math.log(10)
ELO_CENTRE = 1000.0
"""Elo points of the anchor, or of the average model."""
PRIOR = 0.5
"""Number of ties added for each two models where scores would be infinite."""
_TINY = 1e-6
"""The same for intervals, where it only keeps the arithmetic finite."""
_STEPS = 100
_CONVERGED = 1e-9
_DIVERGED = 30.0
"""Nats beyond which no finite score maximises the tilted likelihood."""


class Game(NamedTuple):
    """One comparison of two models' answers."""

    a: str
    b: str
    outcome: float
    """The share of the comparison that a wins, 0..1; 0.5 is a tie."""
    cluster: Hashable = None
    """The prompt; comparisons without one are all independent."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """The score of one model."""

    name: str
    score: float
    """Log-odds, nats."""
    ci_low: float
    ci_high: float
    comparisons: int
    win_rate: float
    """Win rate against all its opponents, ties counted half."""

    @property
    def elo(self) -> tuple[float, float, float]:
        """Score and interval on the Elo scale."""
        return tuple(ELO_CENTRE + ELO_PER_NAT * x for x in (self.score, self.ci_low, self.ci_high))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        elo, low, high = self.elo
        numbers = {"score": self.score, "ci_low": self.ci_low, "ci_high": self.ci_high}
        numbers |= {"elo": elo, "elo_low": low, "elo_high": high}
        known = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {"name": self.name, **known, "comparisons": self.comparisons, "win_rate": self.win_rate}


@dataclass(frozen=True, slots=True)
class Scores:
    """All models, the best first."""

    models: Sequence[ModelScore]
    anchor: str | None
    """The model at 0 (1000 Elo); None if the mean of all models is at 0."""
    unbounded: Sequence[str]
    """Models whose scores would be infinite without the prior."""
    n: int
    prompts: int
    confidence: float

    def __getitem__(self, name: str) -> ModelScore:
        return next(model for model in self.models if model.name == name)

    def chance(self, a: str, b: str) -> float:
        """The probability that model `a` beats model `b`."""
        return float(sigmoid(np.array(self[a].score - self[b].score)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": [model.to_dict() for model in self.models],
            "anchor": self.anchor,
            "unbounded": list(self.unbounded),
            "n": self.n,
            "prompts": self.prompts,
            "confidence": self.confidence,
            "scale": "log-odds; Elo = 1000 + 400/ln(10) * score",
        }

    def sentences(self) -> list[str]:
        """One line per model, and a note on the prior."""
        lines = []
        for model in self.models:
            elo, low, high = model.elo
            ends = " to ".join(f"{end:.0f}" if math.isfinite(end) else "open" for end in (low, high))
            lines.append(f"{model.name}: Elo {elo:.0f} ({self.confidence:.0%} interval {ends})")
        if self.unbounded:
            lines.append(
                f"{', '.join(self.unbounded)} won or lost every comparison, so there is no finite score: half a tie "
                "per pair of models was added. The order is right, the distances are lower bounds."
            )
        return lines


def bradley_terry(
    comparisons: Sequence[Game],
    *,
    anchor: str | None = None,
    confidence: float = 0.95,
) -> Scores:
    """Maximum likelihood scores with profile likelihood intervals, clustered by prompt.

    Args:
        anchor: the model with score 0, usually the baseline; by default the mean of all is 0.
    Raises: DatasetError if there is no comparison, for an impossible outcome, or for models that no chain of
        comparisons connects; RequestError for an unknown anchor or confidence.
    """
    if not 0.0 < confidence < 1.0:
        raise RequestError(f"confidence={confidence} is not between 0 and 1. 0.95 is usual.")
    names = list(dict.fromkeys(name for comparison in comparisons for name in comparison[:2]))
    _check(comparisons, names, anchor)
    place = {name: index for index, name in enumerate(names)}
    first = np.array([place[c.a] for c in comparisons])
    second = np.array([place[c.b] for c in comparisons])
    outcome = np.array([c.outcome for c in comparisons], dtype=np.float64)
    clusters = [index if c.cluster is None else ("named", c.cluster) for index, c in enumerate(comparisons)]
    cluster, prompts = number_clusters(len(comparisons), clusters)
    wins_MM = _wins(first, second, outcome, len(names))
    _check_connected(wins_MM, names)
    unbounded = _unbounded(wins_MM, names)
    prior_MM = PRIOR / 2 * ((wins_MM + wins_MM.T) > 0)
    score_M = _fit(wins_MM + prior_MM if unbounded else wins_MM)
    zero_M = np.full(len(names), 1 / len(names)) if anchor is None else np.eye(len(names))[place[anchor]]
    score_M = score_M - zero_M @ score_M
    games = _Games(first, second, outcome, cluster, prompts)
    ends = [_interval(games, wins_MM, score_M, np.eye(len(names))[m] - zero_M, confidence) for m in range(len(names))]
    low_M, high_M = np.array(ends).T
    if unbounded:
        low_M, high_M = _open_ends(wins_MM, [name in unbounded for name in names], low_M, high_M)
    if anchor is not None:
        low_M[place[anchor]] = high_M[place[anchor]] = 0.0
    met_M = (wins_MM + wins_MM.T).sum(axis=1)
    models = [
        ModelScore(
            name=name,
            score=float(score_M[m]),
            ci_low=min(float(low_M[m]), float(score_M[m])),
            ci_high=max(float(high_M[m]), float(score_M[m])),
            comparisons=int(met_M[m]),
            win_rate=float(wins_MM[m].sum() / met_M[m]),
        )
        for m, name in enumerate(names)
    ]
    models.sort(key=lambda model: -model.score)
    return Scores(models, anchor, unbounded, len(comparisons), prompts, confidence)


def _check(comparisons: Sequence[Game], names: Sequence[str], anchor: str | None) -> None:
    if not comparisons:
        raise DatasetError("There is nothing to score: no comparison was given.")
    for number, comparison in enumerate(comparisons):
        if comparison.outcome not in (0.0, 0.5, 1.0) or comparison.a == comparison.b:
            raise DatasetError(
                f"Comparison {number} ({comparison.a!r} with {comparison.b!r}: {comparison.outcome}) is wrong. Give "
                "two different models, and 1, 0.5 or 0 for the first one."
            )
    if anchor is not None and anchor not in names:
        raise RequestError(f"anchor={anchor!r} is in no comparison. Name one of {', '.join(names)}.")


def _check_connected(wins_MM: Floats, names: Sequence[str]) -> None:
    count, group_M = connected_components(wins_MM + wins_MM.T, directed=False)
    if count > 1:
        groups = [sorted(name for name, own in zip(names, group_M, strict=True) if own == g) for g in range(count)]
        listed = "; ".join(map(", ".join, groups))
        raise DatasetError(
            f"No chain of comparisons connects all models (groups: {listed}), so their scores have no common scale. "
            "Compare one model of each group with the same baseline."
        )


def _wins(first: Any, second: Any, outcome: Floats, models: int) -> Floats:
    """wins[i, j]: number of wins of i over j, ties counted half."""
    wins = np.zeros((models, models))
    np.add.at(wins, (first, second), outcome)
    np.add.at(wins, (second, first), 1 - outcome)
    return wins


def _unbounded(wins_MM: Floats, names: Sequence[str]) -> list[str]:
    """Models that are on no circle of wins: the likelihood has a maximum only without such models (Ford 1957).

    If there are any, these are the models outside of the largest circle.
    """
    reach = _reach(wins_MM)
    both = reach & reach.T
    largest = int(np.argmax(both.sum(axis=1)))
    if both.sum(axis=1).max() == 1:
        return list(names)
    return [name for m, name in enumerate(names) if not both[largest, m]]


def _open_ends(wins_MM: Floats, unbounded_M: Sequence[bool], low_M: Floats, high_M: Floats) -> tuple[Floats, Floats]:
    """Models without a finite score: no model below them ever won against them, or no model above them ever lost to
    them.
    """
    reach = _reach(wins_MM)
    above_M = (reach & ~reach.T).any(axis=1) & np.array(unbounded_M)
    below_M = (reach.T & ~reach).any(axis=1) & np.array(unbounded_M)
    return np.where(below_M, -np.inf, low_M), np.where(above_M, np.inf, high_M)


def _reach(wins_MM: Floats) -> Any:
    """Which model beat which, directly or through others."""
    reach = (wins_MM > 0) | np.eye(len(wins_MM), dtype=bool)
    for middle in range(len(wins_MM)):
        reach |= reach[:, [middle]] & reach[[middle], :]
    return reach


class _Games(NamedTuple):
    """N comparisons by the numbers of their models and prompts."""

    first_N: Any
    second_N: Any
    outcome_N: Floats
    prompt_N: Any
    prompts: int


def _interval(
    games: _Games, wins_MM: Floats, score_M: Floats, contrast_M: Floats, confidence: float
) -> tuple[float, float]:
    """The interval of one model's score: all values that are plausible given its comparisons.

    For two models and independent comparisons without ties this is the likelihood ratio interval of a rate, in
    log-odds. The quantile is Student's, for the prompts whose comparisons move the score.
    """
    if not contrast_M.any():
        return 0.0, 0.0
    models = len(score_M)
    hessian_MM = _curvature(wins_MM, score_M) + np.full((models, models), 1 / models)
    direction_M = np.linalg.solve(hessian_MM, contrast_M)
    moves_N = direction_M[games.first_N] - direction_M[games.second_N]
    # without a chain of comparisons back to both, others' comparisons say nothing, however many they are
    involved_N = np.abs(moves_N) > 1e-9 * np.abs(moves_N).max()
    prompts = len(np.unique(games.prompt_N[involved_N]))
    if prompts < 2:  # one prompt says nothing about others
        return -math.inf, math.inf
    towards_N = np.where(moves_N >= 0, games.outcome_N, 1 - games.outcome_N)[involved_N]
    if np.ptp(towards_N) == 0:  # no spread is seen: each prompt counts as one, and the chance of that is exact
        drop = max(quantile(confidence, prompts - 1) ** 2 / 2, math.log(2 / (1 - confidence)))
        drop *= max(1.0, involved_N.sum() / prompts)
    else:
        residual_N = games.outcome_N - sigmoid(score_M[games.first_N] - score_M[games.second_N])
        drop = allowed_drop(
            (residual_N * moves_N)[involved_N],
            games.prompt_N[involved_N].tolist(),
            float(contrast_M @ direction_M),
            spread=spread_of(towards_N),
            confidence=confidence,
        )
    seen_MM = _TINY * ((wins_MM + wins_MM.T) > 0) + wins_MM

    def tilted(tilt: float) -> Fitted:
        fitted_M = _fit(seen_MM, tilt * contrast_M)
        chance_MM = sigmoid(fitted_M[:, None] - fitted_M[None, :])
        return Fitted(float(contrast_M @ fitted_M), float((seen_MM * np.log(np.maximum(chance_MM, 1e-300))).sum()))

    return profile_interval(tilted, drop=drop)


def _curvature(wins_MM: Floats, score_M: Floats) -> Floats:
    chance_MM = sigmoid(score_M[:, None] - score_M[None, :])
    weight_MM = (wins_MM + wins_MM.T) * chance_MM * (1 - chance_MM)
    curvature: Floats = np.diag(weight_MM.sum(axis=1) + 1e-12) - weight_MM
    return curvature


def _fit(wins_MM: Floats, tilt_M: Floats | float = 0.0) -> Floats:
    """Scores by Newton's method, centred at 0, shape (M,).

    Args:
        tilt_M: added to the slope of the log-likelihood; it sums to 0.
    """
    models = len(wins_MM)
    met_MM = wins_MM + wins_MM.T
    score_M = np.zeros(models)
    centred = np.full((models, models), 1.0 / models)  # takes the direction that changes nothing out of the system
    for _ in range(_STEPS):
        chance_MM = sigmoid(score_M[:, None] - score_M[None, :])
        gradient_M = (wins_MM - met_MM * chance_MM).sum(axis=1) + tilt_M
        step_M = np.linalg.solve(_curvature(wins_MM, score_M) + centred, gradient_M)
        score_M = score_M + np.clip(step_M, -2.0, 2.0)
        if float(np.abs(step_M).max()) < _CONVERGED or float(np.abs(score_M).max()) > _DIVERGED:
            break
    fitted_M: Floats = score_M - score_M.mean()
    return fitted_M
