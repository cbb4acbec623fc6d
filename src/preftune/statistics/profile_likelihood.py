"""Intervals of one quantity of a fitted model by its profile likelihood.

The interval contains every value whose best fit is not much less likely than the overall best fit: the drop of twice
the log-likelihood stays below the squared quantile. Unlike resampling, and unlike the estimate plus or minus an error,
this accounts for what was *not* observed: a model that won every comparison has no upper end, and its lower end follows
from the number of comparisons. Ties and several comparisons of one prompt change the spread of the likelihood's slope;
the drop is corrected by this factor (the design effect: Chandler and Bate 2007, Biometrika 94)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from preftune.statistics.clusters import Floats, clustered, quantile

_WIDEST = 40
"""Number of doublings of the tilt before an end counts as open."""
_BISECTIONS, _EXACT = 60, 1e-6
_OPEN = 15.0
"""Nats beyond which an end counts as open: a probability of three in ten million."""


class Fitted(NamedTuple):
    """The best fit under a tilt."""

    value: float
    """Value of the quantity."""
    loglik: float
    """Log-likelihood in nats, without the tilt."""


def profile_interval(tilted: Callable[[float], Fitted], *, drop: float) -> tuple[float, float]:
    """The two ends of the quantity's interval, infinite if the likelihood never drops that far.

    Args:
        tilted: maximises log-likelihood + tilt * quantity; as the tilt grows so does the quantity, along its profile.
        drop: allowed drop of the log-likelihood in nats, above 0.
    """
    best = tilted(0.0)
    return _end(tilted, best, drop, -1.0), _end(tilted, best, drop, 1.0)


def _end(tilted: Callable[[float], Fitted], best: Fitted, drop: float, sign: float) -> float:
    tilt, near, far = 0.01 * sign, (0.0, best), (0.0, best)
    for _ in range(_WIDEST):
        far = (tilt, tilted(tilt))
        if best.loglik - far[1].loglik >= drop:
            break
        if not abs(far[1].value) < _OPEN:
            return sign * math.inf
        near, tilt = far, 2 * tilt
    else:
        return sign * math.inf
    for _ in range(_BISECTIONS):
        if abs(far[1].value - near[1].value) < _EXACT:
            break
        tilt = (near[0] + far[0]) / 2
        found = tilted(tilt)
        if best.loglik - found.loglik >= drop:
            far = (tilt, found)
        else:
            near = (tilt, found)
            if not abs(found.value) < _OPEN:
                break
    return near[1].value if abs(near[1].value) < _OPEN else sign * math.inf


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)); does not overflow."""
    result: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def spread_of(outcomes: Floats) -> float:
    """How much outcomes in 0..1 vary, as a share of what wins and losses do near 50%: 1 minus the share of ties."""
    return float(4 * np.square(outcomes - 0.5).mean())


def allowed_drop(
    influence_N: Floats,
    clusters: Sequence[Hashable],
    naive: float,
    *,
    spread: float,
    confidence: float,
    parameters: int = 1,
) -> float:
    """The drop of the log-likelihood that an interval allows: the design effect times half the squared quantile.

    The design effect is the ratio of the estimate's variance to the one that the likelihood implies. Near its maximum
    the estimate is a mean of one influence value per comparison, so the variance and its degrees of freedom are those
    of a mean over clusters. The effect is never below what ties and graded outcomes alone explain (`spread_of`). The
    influence values of a closely fitting model would give less.

    Args:
        influence_N: per comparison, by how much it moves the estimate: the gradient of its log-likelihood times the
            inverse curvature of the whole times the contrast.
        clusters: the prompts.
        naive: variance that the likelihood implies.
        spread: of the outcomes, as `spread_of` gives it.
        parameters: of the model, as `Clustered.uncertainty` takes them.
    """
    values = clustered(influence_N * len(influence_N), clusters)
    found = values.uncertainty(confidence, parameters=parameters)
    effect = max(found.variance / naive if naive > 0 else 1.0, spread)
    return effect * quantile(confidence, found.freedom) ** 2 / 2
