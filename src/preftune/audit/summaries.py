"""Arrays of numbers as the few that a table or a plot needs."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[Any]

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def percentiles(values: Numbers) -> dict[str, Any]:
    """Mean, smallest, percentiles and largest of (n,) numbers; `{}` for none."""
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
    """Counts in bins of equal width between two edges, by default the 0.5th and 99.5th percentile.

    What lies beyond the edges is counted in the outermost bins, so that the counts add up and one huge row does not
    flatten the plot.

    Returns: `{"edges": (bins + 1 numbers), "counts": (bins numbers)}`, None for no values.
    """
    if not len(values):
        return None
    whole = np.issubdtype(values.dtype, np.integer)
    low = float(np.percentile(values, 0.5)) if low is None else low
    high = float(np.percentile(values, 99.5)) if high is None else high
    if whole:
        low, high = float(np.floor(low)), float(np.ceil(high)) + 1
        if high - low == 1:  # one value: an empty bin on both sides makes it a bar
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
