"""The uncertainty of a mean over values that come in clusters, as the comparisons of one prompt do.

Only the clusters are independent, so few of them, or a few that hold most of the values, say little. Two estimates of
the variance are made, each with its own degrees of freedom, and the one that gives the wider interval is taken:

- The cluster-robust variance with the correction CR2 and Satterthwaite's degrees of freedom (Bell and McCaffrey 2002,
  Survey Methodology 28:169-181; Pustejovsky and Tipton 2018, Journal of Business & Economic Statistics 36:672-683).
  It assumes nothing on how alike the values of a cluster are. A large cluster draws the mean towards itself, which
  makes its residual small: the correction undoes that, and few large clusters leave few degrees of freedom.
- The variance of the clusters' means, if a cluster of any size were drawn from the same population, split into the
  parts between and within clusters by their mean squares (Searle, Casella and McCulloch 1992, Variance Components,
  chapter 3). Where all large clusters happen to agree (a rate of 80%, three prompts with 20 wins each), the first
  estimate is close to 0, and small clusters know better.

Clusters of equal size make both the usual one: G / (G - 1) times the mean squared residual, G - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from preftune.amounts import counted
from preftune.errors import DatasetError, RequestError

Floats: TypeAlias = NDArray[np.float64]


class Uncertainty(NamedTuple):
    """The variance of an estimate, and how well it is known."""

    variance: float
    freedom: float
    """Degrees of freedom, at least 1."""

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance)

    def width(self, confidence: float) -> float:
        """Half the width of the t interval."""
        return quantile(confidence, self.freedom) * self.error


class Clustered(NamedTuple):
    """The values of G clusters."""

    sums_G: Floats
    counts_G: Floats
    within: float
    """Sum of the squared distances of all values from the mean of their cluster."""

    @property
    def mean(self) -> float:
        return float(self.sums_G.sum() / self.counts_G.sum())

    def uncertainty(self, confidence: float, *, parameters: int = 1) -> Uncertainty:
        """The uncertainty of the mean: the estimate with the wider interval. Variance 0 for a single cluster.

        Args:
            parameters: of the model whose influence values these are; each further one costs a degree of freedom.
        """
        if len(self.sums_G) < 2:
            return Uncertainty(0.0, 1.0)
        found = [self._robust()] if np.ptp(self.counts_G) == 0 else [self._robust(), self._exchangeable()]
        left = [one._replace(freedom=max(1.0, one.freedom - (parameters - 1))) for one in found]
        return max(left, key=lambda one: one.width(confidence))

    def _robust(self) -> Uncertainty:
        """CR2: squared residuals, each divided by its expectation relative to that of an error."""
        share_G = self.counts_G / self.counts_G.sum()
        residual_G = (self.sums_G - self.mean * self.counts_G) / self.counts_G.sum()
        weight_G = 1 / (1 - share_G)
        variance = float((weight_G * np.square(residual_G)).sum())
        # the trace of (W C)^2 for weights W and the residuals' covariance C = diag(share) - share share'
        trace = np.square(weight_G * share_G) @ (1 - 2 * share_G) + (weight_G @ np.square(share_G)) ** 2
        return Uncertainty(variance, max(1.0, 1 / float(trace)))

    def _exchangeable(self) -> Uncertainty:
        """The variance between clusters times the sum of squared shares, and that within them per value."""
        clusters, values = len(self.counts_G), float(self.counts_G.sum())
        within = self.within / (values - clusters)
        between = float((self.sums_G / self.counts_G).var(ddof=1)) - within * float((1 / self.counts_G).mean())
        share = float(np.square(self.counts_G).sum()) / values**2
        return Uncertainty(max(0.0, share * between + within / values), clusters - 1.0)


def clustered(values: Floats, clusters: Sequence[Hashable] | None) -> Clustered:
    """Values by cluster; without names every value is its own. Raises: as `number_clusters`."""
    index, groups = number_clusters(len(values), clusters)
    sums_G = np.bincount(index, weights=values, minlength=groups).astype(np.float64)
    counts_G = np.bincount(index, minlength=groups).astype(np.float64)
    return Clustered(sums_G, counts_G, float(np.square(values - (sums_G / counts_G)[index]).sum()))


def number_clusters(values: int, clusters: Sequence[Hashable] | None) -> tuple[NDArray[np.int64], int]:
    """The number of each value's cluster, from 0 in order of appearance, and the number of clusters.

    Raises: DatasetError unless there is one name per value.
    """
    if clusters is None:
        return np.arange(values), values
    if len(clusters) != values:
        raise DatasetError(
            f"{counted(values, 'value')} but {counted(len(clusters), 'cluster name')}: give one per value."
        )
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(c, len(number)) for c in clusters], dtype=np.int64), len(number)


def quantile(confidence: float, freedom: float) -> float:
    """Student's two-sided quantile. Raises: RequestError for an impossible confidence."""
    if not 0.0 < confidence < 1.0:
        raise RequestError(f"confidence={confidence} is not between 0 and 1. 0.95 is usual.")
    return float(stdtrit(max(freedom, 1.0), 0.5 + confidence / 2))
