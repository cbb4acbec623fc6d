"""Scores of several models from comparisons between them (Bradley and Terry 1952, Biometrika 39).

The chance that a beats b is `sigmoid(score_a - score_b)`; scores maximise the likelihood of all comparisons, a tie
being half a win of each (so are Arena-Hard's and the Chatbot Arena's: Chiang et al. 2024, arXiv:2403.04132). Scores
are log-odds; `elo` is the same on the scale of chess, 400 points being odds of ten to one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from preftune.errors import DatasetError, RequestError
from preftune.evaluation.statistics import Floats, number_clusters

ELO_PER_NAT = 400 / math.log(10)
ELO_CENTRE = 1000.0
"""Points of the anchor, or of the average model."""
PRIOR = 0.5
"""Ties of two models that are added where scores would be infinite, and in resamples, which may lack the only loss."""
_RESAMPLES = 1000
_STEPS = 100
_CONVERGED = 1e-9


class Comparison(NamedTuple):
    """One comparison of two models' answers."""

    a: str
    b: str
    outcome: float
    """1: a is better, 0: b is, 0.5: a tie."""
    cluster: Hashable = None
    """The prompt; comparisons without one are all independent."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model among the others."""

    name: str
    score: float
    """Log-odds, nats."""
    ci_low: float
    ci_high: float
    comparisons: int
    win_rate: float
    """Against whomever it met, ties counted half."""

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
    """The model at 0 (1000 Elo); None when the mean of all is there."""
    unbounded: Sequence[str]
    """Models whose comparisons alone would put them infinitely high or low: a prior holds all scores finite."""
    n: int
    prompts: int
    confidence: float

    def __getitem__(self, name: str) -> ModelScore:
        return next(model for model in self.models if model.name == name)

    def chance(self, a: str, b: str) -> float:
        """That model `a` beats model `b`."""
        return float(_sigmoid(np.array(self[a].score - self[b].score)))

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
        """One line per model, and what to think of a prior."""
        lines = []
        for model in self.models:
            elo, low, high = model.elo
            ends = " to ".join(f"{end:.0f}" if math.isfinite(end) else "open" for end in (low, high))
            lines.append(f"{model.name}: Elo {elo:.0f} ({self.confidence:.0%} interval {ends})")
        if self.unbounded:
            lines.append(
                f"{', '.join(self.unbounded)} won or lost every comparison with others, which has no finite score: "
                "half a tie per pair of models was added. The order is right, the distances are lower bounds."
            )
        return lines


def bradley_terry(
    comparisons: Sequence[Comparison],
    *,
    anchor: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Maximum likelihood scores with percentile intervals from 1,000 resamples of prompts.

    Args:
        anchor: the model that stands at 0, usually the baseline; default: the mean of all does.
    Raises: DatasetError for no comparison, an impossible outcome, or models that no chain of comparisons connects;
        RequestError for an unknown anchor or confidence.
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
    wins_MM = _wins(first, second, outcome, np.ones_like(outcome), len(names))
    unbounded = _unbounded(wins_MM, names)
    prior_MM = PRIOR / 2 * ((wins_MM + wins_MM.T) > 0)
    score_M = _fit((wins_MM + prior_MM if unbounded else wins_MM)[None])[0]
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = np.bincount(rng.integers(0, prompts, prompts), minlength=prompts).astype(np.float64)
        resampled.append(_wins(first, second, outcome, drawn[cluster], len(names)) + prior_MM)
    score_BM = _fit(np.stack(resampled))
    zero = None if anchor is None else place[anchor]
    score_M, score_BM = (s - (s.mean(-1) if zero is None else s[..., zero])[..., None] for s in (score_M, score_BM))
    low_M, high_M = np.quantile(score_BM, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    if prompts < 2:  # one prompt says nothing about others
        low_M, high_M = np.full_like(score_M, -np.inf), np.full_like(score_M, np.inf)
    if unbounded:
        low_M, high_M = _open_ends(wins_MM, [name in unbounded for name in names], low_M, high_M)
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


def _check(comparisons: Sequence[Comparison], names: Sequence[str], anchor: str | None) -> None:
    if not comparisons:
        raise DatasetError("There is nothing to score: no comparison was given.")
    for number, comparison in enumerate(comparisons):
        if comparison.outcome not in (0.0, 0.5, 1.0) or comparison.a == comparison.b:
            raise DatasetError(
                f"Comparison {number} ({comparison.a!r} with {comparison.b!r}: {comparison.outcome}) is none. Give two "
                "different models, and 1, 0.5 or 0 for the first one."
            )
    if anchor is not None and anchor not in names:
        raise RequestError(f"anchor={anchor!r} was compared with nothing. Name one of {', '.join(names)}.")
    groups = _connected(comparisons, names)
    if len(groups) > 1:
        listed = "; ".join(", ".join(sorted(group)) for group in groups)
        raise DatasetError(
            f"No chain of comparisons connects all models (groups: {listed}), so their scores have no common scale. "
            "Compare one model of each group with the same baseline."
        )


def _connected(comparisons: Sequence[Comparison], names: Sequence[str]) -> list[set[str]]:
    group_of: Mapping[str, set[str]] = {name: {name} for name in names}
    joined = dict(group_of)
    for comparison in comparisons:
        one, other = joined[comparison.a], joined[comparison.b]
        if one is not other:
            one |= other
            joined.update(dict.fromkeys(other, one))
    return list({id(group): group for group in joined.values()}.values())


def _wins(first: Any, second: Any, outcome: Floats, weight: Floats, models: int) -> Floats:
    """wins[i, j]: how often i beat j, ties as halves."""
    wins = np.zeros((models, models))
    np.add.at(wins, (first, second), weight * outcome)
    np.add.at(wins, (second, first), weight * (1 - outcome))
    return wins


def _unbounded(wins_MM: Floats, names: Sequence[str]) -> list[str]:
    """Models that no circle of wins leads back to: the likelihood has a maximum only if there are none (Ford 1957).

    Where there are, those outside of the largest circle.
    """
    reach = _reach(wins_MM)
    both = reach & reach.T
    largest = int(np.argmax(both.sum(axis=1)))
    if both.sum(axis=1).max() == 1:
        return list(names)
    return [name for m, name in enumerate(names) if not both[largest, m]]


def _open_ends(wins_MM: Floats, unbounded_M: Sequence[bool], low_M: Floats, high_M: Floats) -> tuple[Floats, Floats]:
    """A model that nobody below it ever beat may be any distance above, and the other way round."""
    reach = _reach(wins_MM)
    above_M = (reach & ~reach.T).any(axis=1) & np.array(unbounded_M)
    below_M = (reach.T & ~reach).any(axis=1) & np.array(unbounded_M)
    return np.where(below_M, -np.inf, low_M), np.where(above_M, np.inf, high_M)


def _reach(wins_MM: Floats) -> Any:
    """Which model beat which, be it through others."""
    reach = (wins_MM > 0) | np.eye(len(wins_MM), dtype=bool)
    for middle in range(len(wins_MM)):
        reach |= reach[:, [middle]] & reach[[middle], :]
    return reach


def _fit(wins_BMM: Floats) -> Floats:
    """Scores by Newton's method for B tables of wins at once, centred at 0. Shape (B, M)."""
    batch, models, _ = wins_BMM.shape
    met_BMM = wins_BMM + wins_BMM.transpose(0, 2, 1)
    score_BM = np.zeros((batch, models))
    centred = np.full((models, models), 1.0 / models)  # takes the direction that changes nothing out of the system
    for _ in range(_STEPS):
        chance = _sigmoid(score_BM[:, :, None] - score_BM[:, None, :])
        gradient_BM = (wins_BMM - met_BMM * chance).sum(axis=2)
        curvature = met_BMM * chance * (1 - chance)
        hessian = np.eye(models) * (curvature.sum(axis=2)[:, :, None] + 1e-12) - curvature + centred
        step = np.linalg.solve(hessian, gradient_BM[:, :, None])[:, :, 0]
        score_BM = score_BM + np.clip(step, -1.0, 1.0)
        if float(np.abs(step).max()) < _CONVERGED:
            break
    centred_BM: Floats = score_BM - score_BM.mean(axis=1, keepdims=True)
    return centred_BM


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow
    return result
