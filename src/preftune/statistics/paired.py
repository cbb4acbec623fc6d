"""One metric of two models: the difference, its interval, and whether it is better, worse or neither."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from preftune.statistics.clusters import Floats
from preftune.statistics.intervals import MeanInterval, WinRate, mean_interval, paired_shares

Better: TypeAlias = Literal["higher", "lower"]

SHARE = "share"
"""The unit of rates: printed in percent, their differences in percentage points."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of the baseline and of the aligned model. The interval is that of the difference, aligned minus base."""

    name: str
    base: float
    aligned: float
    difference: float
    ci_low: float | None
    """None if there are too few prompts: a single prompt is no evidence about others."""
    ci_high: float | None
    better: Better
    n: int
    """Number of paired observations."""
    unit: str = SHARE
    confidence: float = 0.95

    @classmethod
    def of(cls, name: str, base: float, aligned: float, change: MeanInterval, **more: Any) -> Comparison:
        """Makes a comparison with the interval of the difference; an interval with an end that is not finite is
        unknown.
        """
        low, high = (end if math.isfinite(end) else None for end in (change.low, change.high))
        return cls(name=name, base=base, aligned=aligned, difference=change.mean, ci_low=low, ci_high=high, **more)

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        """The conclusion that the interval supports."""
        if self.ci_low is None or self.ci_high is None or self.ci_low <= 0 <= self.ci_high:
            return "no difference shown"
        return "better" if (self.difference > 0) == (self.better == "higher") else "worse"

    def sentence(self) -> str:
        """The comparison in words, with its interval."""
        change = f"{self._signed(self.difference)}, {self.interval_words()}"
        return (
            f"{self.name[0].upper()}{self.name[1:]}: {self._value(self.base)} for the baseline, "
            f"{self._value(self.aligned)} for the aligned model ({change}, n={self.n:,}): {self.verdict}."
        )

    def interval_words(self) -> str:
        """The interval in words."""
        if self.ci_low is None or self.ci_high is None:
            return "too few prompts for an interval"
        return f"{100 * self.confidence:.3g}% interval {self._signed(self.ci_low)} to {self._signed(self.ci_high)}"

    def row(self) -> tuple[str, str, str, str, str]:
        """The row of a table on a terminal: name, base, aligned, difference with its interval, verdict."""
        interval = ""
        if self.ci_low is not None and self.ci_high is not None:
            interval = f" [{self._signed(self.ci_low)}, {self._signed(self.ci_high)}]"
        difference = f"{self._signed(self.difference)}{interval}"
        return self.name, self._value(self.base), self._value(self.aligned), difference, self.verdict

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}

    def _value(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == SHARE else f"{value:.{self._digits}f}"

    def _signed(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.unit == SHARE else f"{value:+.{self._digits}f}"

    @property
    def _digits(self) -> int:
        return 2 if self.unit == "points" else 3


def compare_shares(
    name: str,
    base: Sequence[float] | Floats,
    aligned: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    better: Better,
    confidence: float = 0.95,
    members: Sequence[int] | None = None,
) -> Comparison:
    """Rates of the same prompts under both models, paired: values in [0, 1].

    The interval is that of `paired_shares`.

    Args:
        members: the rows that count; default: all.
    """
    base_N, aligned_N = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    if members is not None:
        base_N, aligned_N = base_N[members], aligned_N[members]
        clusters = None if clusters is None else [clusters[row] for row in members]
    change = paired_shares(base_N, aligned_N, clusters, confidence=confidence)
    means = float(base_N.mean()), float(aligned_N.mean())
    return Comparison.of(name, *means, change, better=better, n=len(base_N), confidence=confidence)


def compare_means(
    name: str,
    base: Sequence[float] | Floats,
    aligned: Sequence[float] | Floats,
    clusters: Sequence[Hashable] | None = None,
    *,
    better: Better,
    unit: str,
    confidence: float = 0.95,
) -> Comparison:
    """A quantity of the same prompts under both models, paired, with a clustered t interval of the difference.

    If all prompts changed by the same amount, as integer ratings of a few prompts may, no variance can be measured and
    there is no interval: it would have zero width, and two prompts would count as proof."""
    base_N, aligned_N = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    change = mean_interval(aligned_N - base_N, clusters, confidence=confidence)
    if change.standard_error == 0 and change.mean != 0:
        change = change._replace(low=-math.inf, high=math.inf)
    means = float(base_N.mean()), float(aligned_N.mean())
    return Comparison.of(name, *means, change, better=better, n=len(base_N), unit=unit, confidence=confidence)


def compare_with_constant(name: str, constant: float, found: MeanInterval, *, n: int, confidence: float) -> Comparison:
    """A rate with its interval, compared with what is known of a baseline without measuring it; higher is better."""
    change = MeanInterval(found.mean - constant, found.low - constant, found.high - constant, found.standard_error)
    return Comparison.of(name, constant, found.mean, change, better="higher", n=n, confidence=confidence)


def compare_with_even(name: str, rate: float, low: float, high: float, *, n: int, confidence: float) -> Comparison:
    """A win rate against the baseline with its interval, compared with the 50% of an equal model."""
    return compare_with_constant(name, 0.5, MeanInterval(rate, low, high, math.nan), n=n, confidence=confidence)


def compare_weighted(name: str, parts: Sequence[Comparison], weights: Sequence[float]) -> Comparison:
    """The weighted mean of figures of separate prompts, such as the sections of a benchmark.

    Its interval is recovered from those of the parts: the distance of its ends from the mean is the root of the sum of
    the squared weighted distances (Zou and Donner 2008, Statistics in Medicine 27:1693-1702). So it is as wide as a
    part without variance requires, where a bootstrap would have no width. One part without an interval leaves none.

    Args:
        weights: of the parts, at least 0; only their ratios matter.
    """
    share_P = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
    base, aligned, difference = (
        float(share_P @ np.array([getattr(part, field) for part in parts]))
        for field in ("base", "aligned", "difference")
    )
    low_P, high_P = (
        np.array([math.nan if (end := getattr(part, field)) is None else end - part.difference for part in parts])
        for field in ("ci_low", "ci_high")
    )
    low, high = (float(np.sqrt(np.square(share_P * end_P).sum())) for end_P in (low_P, high_P))
    change = MeanInterval(difference, difference - low, difference + high, math.nan)
    first, n = parts[0], sum(part.n for part in parts)
    more: dict[str, Any] = {"better": first.better, "n": n, "unit": first.unit, "confidence": first.confidence}
    return Comparison.of(name, base, aligned, change, **more)


def compare_win_rate(name: str, rate: WinRate) -> Comparison:
    """The same for a `WinRate`."""
    return compare_with_even(name, rate.win_rate, rate.ci_low, rate.ci_high, n=rate.n, confidence=rate.confidence)


def by_group(
    groups: Mapping[str, Sequence[int]], compare: Callable[[str, Sequence[int], float], Comparison], confidence: float
) -> list[Comparison]:
    """The same comparison within each group, by the indices of its members.

    Many groups, each at 95%, would show a difference by chance; their intervals are widened (Bonferroni), so that all
    of them hold together with `confidence`."""
    each = 1 - (1 - confidence) / max(1, len(groups))
    return [compare(name, members, each) for name, members in groups.items()]


def members_by(names: Sequence[str | None]) -> dict[str, list[int]]:
    """Indices by name, in order of appearance of the names; None belongs to no group."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            groups.setdefault(name, []).append(index)
    return groups
