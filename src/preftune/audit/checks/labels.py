"""Reliability of the labels: agreement of the annotators, strength of the preference, weights."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Example, Finding, Kind, Rows
from preftune.audit.seen import SeenPair
from preftune.audit.summaries import histogram, percentiles

LOW = 0.6
"""Share of annotators below which a label is little better than a coin toss."""

LOW_AGREEMENT = Kind(
    "low_agreement",
    "warning",
    "Labels that the annotators hardly agree on",
    "A label on which fewer than 60% agree is close to a coin toss, but is trained like any other.",
    "Leave them out (preftune convert --min-agreement 0.6), or give them less weight (a column 'weight').",
)
REVERSED = Kind(
    "strength_against_label",
    "error",
    "Ratings that contradict the label",
    "The rejected answer has the better rating: the pair teaches the opposite of what was rated.",
    "Swap or remove these rows, or check which columns hold the ratings.",
)
EQUAL = Kind(
    "no_strength",
    "warning",
    "Both answers are rated the same",
    "The ratings show no difference; the label is noise.",
    "Leave them out: preftune convert --min-margin 0.1, in the units of the ratings.",
)
WEIGHTLESS = Kind(
    "zero_weight",
    "warning",
    "Pairs of weight 0",
    "They are computed but have no effect.",
    "Remove them, or leave the column unread: --columns weight=",
)


class LabelsCheck(Check):
    """Checks the columns of the data that describe the labels."""

    kinds = (LOW_AGREEMENT, REVERSED, EQUAL, WEIGHTLESS)
    section = "labels"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.agreement = array("d")

    def take(self, seen: SeenPair) -> None:
        agreement = seen.pair.agreement
        if agreement is not None:
            self.agreement.append(agreement)
            if agreement < LOW:
                self.add(LOW_AGREEMENT, seen, f"agreement {agreement:.2f}")
        if seen.pair.weight == 0:
            self.add(WEIGHTLESS, seen)

    def findings(self, pairs: int) -> Iterator[Finding]:
        yield from LOW_AGREEMENT.found(self.rows[LOW_AGREEMENT], of=len(self.agreement))
        yield from WEIGHTLESS.found(self.rows[WEIGHTLESS], of=pairs)
        strengths = self._strengths()
        if strengths is not None:
            known = int(np.isfinite(strengths).sum())
            yield from REVERSED.found(self._where(strengths < 0, strengths), of=known)
            yield from EQUAL.found(self._where(strengths == 0, strengths), of=known)

    def _strengths(self) -> Any:
        pairs = self.setting.data.pairs
        return None if pairs is None else pairs.strengths()

    def _where(self, mask: Any, strengths: Any) -> Rows:
        places = np.flatnonzero(mask)
        row_of = self.setting.data.row_of
        examples = [Example(row_of(int(i)), int(i), f"strength {strengths[i]:g}") for i in places[:3]]
        return Rows(len(places), examples)

    def figures(self) -> Mapping[str, Any]:
        figures: dict[str, Any] = {}
        if len(self.agreement):
            values = np.frombuffer(self.agreement)
            figures["agreement"] = {"mean": float(values.mean()), "histogram": histogram(values, low=0.0, high=1.0)}
        strengths = self._strengths()
        if strengths is not None:
            known = strengths[np.isfinite(strengths)]
            figures["strength"] = {**percentiles(known), "histogram": histogram(known)}
        return figures
