"""Whether there are enough pairs, and enough held-out prompts to show a small change of the accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from statistics import NormalDist
from typing import Any

from preftune.amounts import counted
from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind, Rows
from preftune.audit.seen import SeenPair, see
from preftune.statistics.intervals import POWER

DOMAIN, GENERAL = 1_000, 10_000
"""Number of pairs that has an effect in one domain, and number that is recommended for general use."""

CHANGE = 0.02
DISAGREEMENT = 0.2
"""Assumed share of pairs on which the models before and after differ; audit.json gives it with the results."""

FEW = Kind(
    "few_pairs",
    "warning",
    "Fewer than 1,000 pairs",
    "Too few for more than a narrow domain; a difference may not show, or may be noise.",
    "Collect more pairs, and judge the result by win rate with its interval.",
)
FEWER = Kind(
    "fewer_than_recommended",
    "info",
    "Fewer than 10,000 pairs",
    "Enough for one domain; 10,000 are recommended for general use.",
    "Collect more pairs if the model should improve in general.",
)
SMALL_EVAL = Kind(
    "small_eval",
    "warning",
    "Too few held-out prompts to see a change of 2 points",
    "Two checkpoints cannot be distinguished on them: differences of this size are noise.",
    "Hold out more (preftune dpo --eval_fraction), or trust only larger differences.",
)


class SizeCheck(Check):
    """Counts usable training pairs, and pairs and prompts of the evaluation data."""

    kinds = (FEW, FEWER, SMALL_EVAL)
    section = "size"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.usable = 0

    def take(self, seen: SeenPair) -> None:
        self.usable += seen.usable

    @cached_property
    def held_out(self) -> tuple[int, int] | None:
        """Numbers of pairs and of distinct prompts of the evaluation data. Prompts count for the test, because pairs of
        one prompt tend to be right or wrong together.
        """
        held_out = self.setting.held_out
        if held_out is None:
            return None
        pairs, prompts = 0, set()
        for good, _ in held_out.batches():
            pairs += len(good)
            prompts |= {see(pair, index).prompt_key for index, pair in good}
        return pairs, len(prompts)

    def findings(self, pairs: int) -> Iterator[Finding]:
        if 0 < self.usable < GENERAL:
            kind = FEW if self.usable < DOMAIN else FEWER
            yield from kind.found(Rows(self.usable), of=self.usable, detail=f"{counted(self.usable, 'usable pair')}.")
        if self.held_out is None:
            return
        count, prompts = self.held_out
        if prompts < held_out_pairs():
            smallest = f"{smallest_change(prompts):.1%}" if prompts else "no"
            detail = (
                f"{counted(count, 'pair')} of {counted(prompts, 'different prompt')} can show a change of at least "
                f"{smallest}, counting prompts; 2 points need {held_out_pairs():,}."
            )
            yield from SMALL_EVAL.found(Rows(max(1, count)), of=max(1, count), detail=detail)

    def figures(self) -> Mapping[str, Any]:
        count, prompts = self.held_out or (None, None)
        return {
            "usable": self.usable,
            "recommended": {"domain": DOMAIN, "general": GENERAL},
            "held_out": {
                "pairs": count,
                "prompts": prompts,
                "needed": held_out_pairs(),
                "change": CHANGE,
                "disagreement": DISAGREEMENT,
                "smallest_change": smallest_change(prompts) if prompts else None,
                "formula": "n = (z_0.975 + z_0.8)^2 (q - d^2) / d^2 with d the change of accuracy and q the share of "
                "pairs on which the two models differ",
            },
        }


def _z() -> float:
    return NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(POWER)


def held_out_pairs(change: float = CHANGE, disagreement: float = DISAGREEMENT) -> int:
    """Number of pairs on which a change of accuracy is significant at 95% confidence in four cases out of five.

    Paired normal approximation: each pair's difference is -1, 0 or 1 with mean d and variance q - d^2, so
    `n = (z_0.975 + z_0.8)^2 (q - d^2) / d^2`.

    Args:
        change: d, of accuracy, such as 0.02.
        disagreement: q, share of the pairs that exactly one of the two models ranks correctly.
    """
    return math.ceil(_z() ** 2 * (disagreement - change**2) / change**2)


def smallest_change(pairs: int, disagreement: float = DISAGREEMENT) -> float:
    """The smallest change of accuracy that `pairs` held-out pairs can show: `held_out_pairs` solved for d."""
    return math.sqrt(_z() ** 2 * disagreement / (pairs + _z() ** 2))
