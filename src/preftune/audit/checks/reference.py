"""Margins and accuracy of the model on the pairs before training, and the labels that surprise it most."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind
from preftune.audit.seen import SeenPair
from preftune.audit.summaries import Numbers, histogram
from preftune.statistics.intervals import share

_FAR = 3.5
"""Robust standard deviations below the median from which a pair is surprising: Iglewicz and Hoaglin (1993)."""
_SHOWN = 20

SURPRISING = Kind(
    "surprising_labels",
    "warning",
    "Labels that surprise the reference most",
    "Per token, the rejected answer is far more probable under the reference: often the two sides are swapped.",
    "Read these rows first; swap or remove those that are wrong.",
)
UNSCORED = Kind(
    "unscored",
    "info",
    "Pairs that the reference could not score",
    "They have no tokens to train on within the limits, so they are not trained on either.",
    "See the findings about lengths and templates.",
)


class ReferenceCheck(Check):
    """Reads the log-probabilities of the pairs under the model as received; needs a scorer."""

    kinds = (SURPRISING, UNSCORED)
    section = "reference"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.prompt = array("Q")

    @classmethod
    def applies(cls, setting: Setting) -> bool:
        return setting.scorer is not None

    def take(self, seen: SeenPair) -> None:
        if seen.usable:
            self.kept.keep(seen.index, seen.row)
            self.prompt.append(seen.prompt_key)

    @cached_property
    def _scores(self) -> Numbers:
        """Log-probabilities in nats and tokens of both sides, shape (pairs, 4); NaN for a pair that has no score."""
        assert self.setting.scorer is not None
        assert self.setting.data.pairs is not None
        return self.setting.scorer.score(self.setting.data.pairs, np.frombuffer(self.kept.index, dtype=np.int64))

    def _per_token(self) -> Numbers:
        chosen, rejected, chosen_tokens, rejected_tokens = self._scores.T
        margins: Numbers = chosen / chosen_tokens - rejected / rejected_tokens
        return margins

    def _surprise(self) -> Numbers:
        """Distance of each margin per token from their median, in robust standard deviations, shape (pairs,); NaN
        without a score.
        """
        margins = self._per_token()
        known = margins[np.isfinite(margins)]
        if not len(known):
            return margins
        middle = float(np.median(known))
        spread = 1.4826 * float(np.median(np.abs(known - middle)))
        distance: Numbers = (margins - middle) / spread if spread > 0 else np.zeros_like(margins)
        return distance

    def findings(self, pairs: int) -> Iterator[Finding]:
        if not len(self.prompt):
            return
        margins, surprise = self._per_token(), self._surprise()
        missing = np.flatnonzero(~np.isfinite(margins))
        places = np.flatnonzero((surprise < -_FAR) & (margins < 0))
        worst = places[np.argsort(margins[places], kind="stable")]
        rows = self.kept.rows(worst, lambda place: f"{margins[place]:+.2f} nats per token")
        yield from SURPRISING.found(rows, of=pairs)
        yield from UNSCORED.found(self.kept.rows(missing), of=pairs)

    def figures(self) -> Mapping[str, Any]:
        if not len(self.prompt):
            return {}
        assert self.setting.scorer is not None
        chosen, rejected, _, _ = self._scores.T
        margins, per_token = chosen - rejected, self._per_token()
        known = np.isfinite(margins)
        if not known.any():
            return {"pairs": 0}
        clusters = np.frombuffer(self.prompt, dtype=np.uint64)[known].tolist()
        order = np.argsort(np.where(known, per_token, np.inf), kind="stable")[: min(_SHOWN, int(known.sum()))]
        return {
            "model": self.setting.scorer.name,
            "pairs": int(known.sum()),
            "computed": self.setting.scorer.computed,
            "margin": _margin(margins[known], clusters),
            "margin_per_token": _margin(per_token[known], clusters),
            "most_surprising": [
                {"row": self.kept.row[p], "margin": float(margins[p]), "margin_per_token": float(per_token[p])}
                for p in order.tolist()
            ],
        }


def _margin(values: Numbers, clusters: Sequence[int]) -> dict[str, Any]:
    """Mean and standard deviation of margins in nats, and the accuracy with its interval, clustered by prompt. Ties
    count half.
    """
    accuracy = share(np.where(values > 0, 1.0, np.where(values < 0, 0.0, 0.5)), clusters)
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "histogram": histogram(values),
    }
