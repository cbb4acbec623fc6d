"""Pairs whose sides are empty, the same, or nearly the same."""

from __future__ import annotations

import difflib
import re
from collections import Counter

from preftune.audit.checks.check import Check
from preftune.audit.finding import Kind
from preftune.audit.seen import SeenPair

NEAR = 0.95
"""Share of common words from which two sides count as nearly identical."""

_LONGEST = 2000
"""Mean number of words of the two sides up to which their order is compared too."""

_WORD = re.compile(r"\w+")

EMPTY = Kind(
    "empty",
    "error",
    "Empty answers",
    "Such a pair cannot be trained on; preftune dpo leaves it out.",
    "Fill in the empty side, or let preftune convert remove such rows.",
)
EMPTY_PROMPT = Kind(
    "empty_prompt",
    "warning",
    "Empty prompts",
    "The model learns which answer is better without knowing the question.",
    "Name the column of prompts: --columns prompt=NAME (a plus joins two: prompt=instruction+input).",
)
IDENTICAL = Kind(
    "identical",
    "error",
    "Chosen and rejected are the same",
    "Such a pair states no preference; preftune dpo leaves it out.",
    "Remove such rows, or let preftune convert do it.",
)
NEARLY = Kind(
    "nearly_identical",
    "warning",
    "Chosen and rejected are nearly the same",
    "All of the loss rests on a few words, and DPO then tends to lower the probability of both answers.",
    "Check the examples; remove such rows unless the few words are intended.",
)


class SidesCheck(Check):
    """Compares chosen with rejected."""

    kinds = (EMPTY, IDENTICAL, NEARLY, EMPTY_PROMPT)

    def take(self, seen: SeenPair) -> None:
        if seen.blank:
            both = not (seen.chosen.strip() or seen.rejected.strip())
            side = "both sides" if both else "chosen" if not seen.chosen.strip() else "rejected"
            self.add(EMPTY, seen, f"{side} empty")
            return
        if not seen.prompt.strip():
            self.add(EMPTY_PROMPT, seen)
        if seen.chosen_key == seen.rejected_key:
            self.add(IDENTICAL, seen)
        elif nearly_identical(seen.chosen, seen.rejected):
            self.add(NEARLY, seen)


def nearly_identical(left: str, right: str) -> bool:
    """Whether two texts differ only in punctuation, case and white space, or share 95% of their words in order.

    The share is 2 M / T with M matching words in order and T words of both texts. Beyond 2,000 words on average, the
    order is not compared. Texts whose lengths in characters differ by more than a fifth are not nearly identical.
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
