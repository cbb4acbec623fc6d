"""Percentiles and histograms of arrays, for tables and plots."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[Any]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def percentiles(values: Numbers) -> dict[str, Any]:
    """Mean, minimum, percentiles and maximum of numbers of shape (n,); `{}` without numbers."""
    if not len(values):
        return {}
    found = np.percentile(values, PERCENTILES)
    named = {f"p{rank}": round(float(value), 4) for rank, value in zip(PERCENTILES, found, strict=True)}
    return {
        "mean": round(float(values.mean()), 4),
        "min": round(float(values.min()), 4),
        **named,
        "max": round(float(values.max()), 4),
    }


def histogram(values: Numbers, *, bins: int = 40, low: float | None = None, high: float | None = None) -> Any:
    """Counts in bins of equal width between `low` and `high`, by default the 0.5th and 99.5th percentile.

    Values beyond the edges count in the outermost bins, so that the counts add up and a single large value does not
    flatten the plot.

    Args:
        values: shape (n,).
        bins: number of bins; integers may need fewer.
    Returns: `{"edges": ..., "counts": ...}` with one edge more than counts; None without values.
    """
    if not len(values):
        return None
    whole = np.issubdtype(values.dtype, np.integer)
    low = float(np.percentile(values, 0.5)) if low is None else low
    high = float(np.percentile(values, 99.5)) if high is None else high
    if whole:
        low, high = float(np.floor(low)), float(np.ceil(high)) + 1
        if high - low == 1:  # one value: add an empty bin on each side
            low, high = low - 1, high + 1
        width = max(1, int(np.ceil((high - low) / bins)))
        edges = np.arange(low, high + width, width, dtype=np.float64)
    else:
        if high <= low:
            low, high = low - 0.5, low + 0.5
        edges = np.linspace(low, high, bins + 1)
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], edges[0]))
    counts, _ = np.histogram(inside, edges)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}
