"""The two sides of a pair: empty, the same, or nearly the same."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind, Rows
from preftune.audit.opening import Fault
from preftune.audit.seen import SeenPair

NEAR = 0.95
"""Share of words from which two sides count as nearly identical."""

_LONGEST = 2000
"""Words up to which the order of words is compared as well."""

_WORD = re.compile(r"\w+")

EMPTY = Kind(
    "empty",
    "error",
    "Empty answers",
    "Such a pair cannot be trained on; preftune dpo leaves it out.",
    "Fill the empty side in, or let preftune convert remove such rows.",
)
EMPTY_PROMPT = Kind(
    "empty_prompt",
    "warning",
    "Empty prompts",
    "The model learns which answer is better without knowing what was asked.",
    "Name the column of prompts: --columns prompt=NAME (a plus joins two: prompt=instruction+input).",
)
IDENTICAL = Kind(
    "identical",
    "error",
    "Chosen and rejected are the same",
    "Such a pair prefers nothing; preftune dpo leaves it out.",
    "Remove such rows, or let preftune convert do it.",
)
NEARLY = Kind(
    "nearly_identical",
    "warning",
    "Chosen and rejected are nearly the same",
    "All of the loss rests on a few words, and DPO then tends to lower the probability of both answers.",
    "Look at the examples; unless the few words are the point, remove such rows.",
)


class SidesCheck(Check):
    """Compares chosen with rejected."""

    kinds = (EMPTY, EMPTY_PROMPT, IDENTICAL, NEARLY)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.empty, self.no_prompt, self.same, self.near = Rows(), Rows(), Rows(), Rows()

    def see(self, batch: Sequence[SeenPair], faults: Sequence[Fault]) -> None:
        for seen in batch:
            if seen.blank:
                both = not (seen.chosen.strip() or seen.rejected.strip())
                side = "both sides" if both else "chosen" if not seen.chosen.strip() else "rejected"
                self.empty.add(seen.row, seen.index, f"{side} empty")
                continue
            if not seen.prompt.strip():
                self.no_prompt.add(seen.row, seen.index)
            if seen.chosen_key == seen.rejected_key:
                self.same.add(seen.row, seen.index)
            elif nearly_identical(seen.chosen, seen.rejected):
                self.near.add(seen.row, seen.index)

    def findings(self, pairs: int) -> Iterator[Finding]:
        yield from EMPTY.found(self.empty, of=pairs)
        yield from IDENTICAL.found(self.same, of=pairs)
        yield from NEARLY.found(self.near, of=pairs)
        yield from EMPTY_PROMPT.found(self.no_prompt, of=pairs)


def nearly_identical(left: str, right: str) -> bool:
    """Whether two texts differ in punctuation, case and white space only, or share 95% of their words in order.

    The share is 2 M / T with M matching words in order and T words of both; beyond 2,000 words the order is not looked
    at.
    """
    longer, shorter = max(len(left), len(right)), min(len(left), len(right))
    if shorter < 0.8 * longer:
        return False
    ours, theirs = _WORD.findall(left.casefold()), _WORD.findall(right.casefold())
    if ours == theirs:
        return bool(ours) or left.split() == right.split()
    total = len(ours) + len(theirs)
    if 2 * min(len(ours), len(theirs)) < NEAR * total:
        return False
    common = (Counter(ours) & Counter(theirs)).total()
    if 2 * common < NEAR * total:
        return False
    if total > 2 * _LONGEST:
        return True
    return difflib.SequenceMatcher(None, ours, theirs, autojunk=False).ratio() >= NEAR
