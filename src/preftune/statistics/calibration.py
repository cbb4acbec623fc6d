"""How often a reward model is right, by its confidence: reliability and calibration error, on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from preftune.amounts import counted

BINS = 10


class Bin(NamedTuple):
    """Pairs on which the model has about the same confidence."""

    low: float
    high: float
    pairs: int
    confidence: float
    """Mean probability of the side that the model prefers, 0.5..1."""
    accuracy: float
    """Share of pairs in which that side is the chosen one; ties count half."""


class Calibration(NamedTuple):
    """The calibration of a reward model on held-out pairs."""

    error: float
    """Expected calibration error: |confidence - accuracy| per bin, averaged over pairs, 0..0.5."""
    accuracy: float
    """Accuracy; ties count half."""
    confidence: float
    bins: tuple[Bin, ...]
    """The bins that hold pairs."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "error": self.error,
            "accuracy": self.accuracy,
            "confidence": self.confidence,
            "bins": [bin._asdict() for bin in self.bins],
        }

    def sentence(self) -> str:
        """The numbers in words."""
        off = self.confidence - self.accuracy
        said = (
            f"its mean confidence is {self.confidence:.0%}, and it is right in {self.accuracy:.0%} of "
            f"{counted(self.pairs, 'pair')}"
        )
        if self.error < 0.05:
            verdict = "well calibrated"
        elif off > 0.03:
            verdict = "overconfident: fewer epochs, a lower learning rate, or centring"
        elif off < -0.03:
            verdict = "underconfident: its scores are closer together than necessary"
        else:
            verdict = "sure of the wrong pairs as often as unsure of the right ones"
        return f"Calibration error {self.error:.3f}: {said} ({verdict})."

    @property
    def pairs(self) -> int:
        return sum(bin.pairs for bin in self.bins)


def calibration(margins: Sequence[float], *, bins: int = BINS) -> Calibration:
    """Guo et al. 2017 (arXiv:1706.04599), eq. 3, for the Bradley-Terry probability of the preferred side.

    Args:
        margins: score of chosen minus score of rejected for every pair, in nats.
        bins: number of bins of equal width over 0.5..1.
    Raises:
        ValueError: no pairs.
    """
    margin_N = np.asarray(margins, dtype=np.float64)
    if margin_N.size == 0:
        raise ValueError("calibration needs at least one pair")
    sure_N = 1 / (1 + np.exp(-np.abs(margin_N)))
    right_N = np.where(margin_N == 0, 0.5, (margin_N > 0).astype(np.float64))
    place_N = np.minimum(((sure_N - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    found = []
    for index in range(bins):
        inside = place_N == index
        if inside.any():
            low = 0.5 + index / (2 * bins)
            found.append(
                Bin(
                    low,
                    low + 1 / (2 * bins),
                    int(inside.sum()),
                    float(sure_N[inside].mean()),
                    float(right_N[inside].mean()),
                )
            )
    error = sum(bin.pairs * abs(bin.confidence - bin.accuracy) for bin in found) / margin_N.size
    return Calibration(float(error), float(right_N.mean()), float(sure_N.mean()), tuple(found))
