"""The names of the verdicts, and which of them is enough for `--fail_under`. Imports nothing, so that a parser may."""

from __future__ import annotations

from collections.abc import Mapping

BAR = 0.55
"""Win rate below which the verdict calls an improvement small."""
BETTER, BELOW_BAR, UNDECIDED, WORSE = "better", f"better but below the {BAR:.0%} bar", "undecided", "worse"
SHORTER, LONGER = "shorter, not better", "longer, not better"
LESS_CORRECT, DEGENERATE = "preferred, but less correct", "preferred, but degenerate"
FORGETFUL = "preferred, but forgetful"
CHEAT = "cheat"
"""Followed by a colon and the names of the cheats."""


def level_of(name: str) -> int:
    """4 better, 3 below the bar, 2 undecided, 1 preferred but a rule fails, 0 worse or a cheat."""
    if name.startswith(CHEAT):
        return 0
    return {BETTER: 4, BELOW_BAR: 3, UNDECIDED: 2, WORSE: 0}.get(name, 1)


LEVELS: Mapping[str, int] = {
    "undecided": level_of(UNDECIDED),
    "below-bar": level_of(BELOW_BAR),
    "better": level_of(BETTER),
}
"""What `--fail_under` can ask for, and the least level of a verdict that is enough."""
