"""Whether the aligned model became more correct, or only shorter: key-fact rates and lengths, compared prompt by
prompt.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.statistics.intervals import MeanInterval, Verdict, paired_shares, share

BASE_MODEL = "the base model"
"""The name of the baseline in sentences, unless another one is known."""

LENGTH_BAR = 0.10
"""A mean length counts as shorter or longer from this relative difference on."""


@dataclass(frozen=True, slots=True)
class KeyFactRates:
    """Shares of answers that contain the key fact, and the paired difference (aligned minus base)."""

    base: MeanInterval
    aligned: MeanInterval
    difference: MeanInterval
    gained: int
    """Prompts where only the aligned model is correct."""
    lost: int
    """Prompts where only the base model is correct."""
    p_value: float
    """Exact sign test on the prompts that changed."""
    n: int
    confidence: float

    @property
    def shown(self) -> bool:
        """Whether the difference is more than chance: its interval excludes zero, and so does the exact sign test.

        Both, because with few changed prompts either alone is too optimistic.
        """
        excludes_zero = self.difference.low > 0 or self.difference.high < 0
        return excludes_zero and self.p_value < 1 - self.confidence

    def to_dict(self) -> dict[str, Any]:
        sides = {
            side: {"rate": interval.mean, "ci_low": interval.low, "ci_high": interval.high}
            for side, interval in (("base", self.base), ("aligned", self.aligned), ("difference", self.difference))
        }
        return {**sides, "gained": self.gained, "lost": self.lost, "p_value": self.p_value, "n": self.n}


def sign_test(gained: int, lost: int) -> float:
    """Two-sided p-value of `gained` against `lost` under a fair coin (McNemar's exact test). `5, 0` gives 0.0625."""
    if gained == lost:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def compare_key_facts(
    base: Sequence[bool],
    aligned: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
) -> KeyFactRates:
    """Key-fact rates of both models on the same prompts, with intervals clustered by prompt.

    Args:
        base, aligned: per comparison, whether the answer is correct.
        clusters: the prompt of each comparison; a prompt with several comparisons has gained (or lost) when the sum
            of its changes is above (or below) zero.
    """
    if len(base) != len(aligned):
        raise DatasetError(
            f"{counted(len(base), 'base answer')} but {len(aligned)} aligned ones: they must belong to the same rows."
        )
    base_N, aligned_N = np.asarray(base, dtype=np.float64), np.asarray(aligned, dtype=np.float64)
    change = aligned_N - base_N
    net: dict[Hashable, float] = {}
    for name, value in zip(clusters if clusters is not None else range(len(change)), change, strict=True):
        net[name] = net.get(name, 0.0) + float(value)
    gained, lost = sum(v > 0 for v in net.values()), sum(v < 0 for v in net.values())
    return KeyFactRates(
        base=share(base_N, clusters, confidence=confidence),
        aligned=share(aligned_N, clusters, confidence=confidence),
        difference=paired_shares(base_N, aligned_N, clusters, confidence=confidence),
        gained=gained,
        lost=lost,
        p_value=sign_test(gained, lost),
        n=len(change),
        confidence=confidence,
    )


def length_word(base_tokens: float, aligned_tokens: float) -> str:
    """`shorter`, `longer` or `as long`: the aligned mean against the base mean, 10% or more being a difference."""
    if aligned_tokens <= base_tokens * (1 - LENGTH_BAR) and aligned_tokens < base_tokens:
        return "shorter"
    if aligned_tokens >= base_tokens * (1 + LENGTH_BAR) and aligned_tokens > base_tokens:
        return "longer"
    return "as long"


def correctness_verdict(
    rates: KeyFactRates | None, *, base_tokens: float, aligned_tokens: float, baseline: str = BASE_MODEL
) -> Verdict:
    """What changed: correctness, length, both or neither. A result in favour of the aligned model must be significant,
    a doubt need not be.

    1. More correct, by more than chance (`KeyFactRates.shown`): `more correct`, `more correct but longer` when its
       answers are longer by 10% or more.
    2. Fewer correct answers, be it by one: `shorter and less correct`, `longer and less correct` or `less correct`;
       the sentence says whether that is more than chance.
    3. Otherwise no difference in correctness is shown: `only shorter`, `only longer` or `no difference shown`.
    4. Without key facts: `not measured`.
    """
    length = length_word(base_tokens, aligned_tokens)
    lengths = f"{aligned_tokens:.0f} tokens per answer instead of {base_tokens:.0f}"
    if rates is None:
        return Verdict("not measured", f"The rows carry no key facts, so correctness was not measured; {lengths}.")
    facts = (
        f"The key fact is in {rates.aligned.mean:.1%} of the aligned model's answers and in {rates.base.mean:.1%} of "
        f"{baseline}'s ({counted(rates.gained, 'prompt')} gained, {rates.lost} lost; {lengths})"
    )
    if rates.difference.mean > 0 and rates.shown:
        name = "more correct but longer" if length == "longer" else "more correct"
        return Verdict(name, f"{facts}: the aligned model is more correct, by more than chance.")
    if rates.difference.mean < 0:
        name = "less correct" if length == "as long" else f"{length} and less correct"
        chance = "by more than chance" if rates.shown else "though a difference this small can be chance"
        return Verdict(name, f"{facts}: the aligned model is {name}, {chance}.")
    name = "no difference shown" if length == "as long" else f"only {length}"
    shown = "no difference in correctness is shown"
    return Verdict(name, f"{facts}: {shown}." if length == "as long" else f"{facts}: {shown}, it is {name}.")
