"""Rows without a pair: rows that the format leaves out, that cannot be read, or that training would refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import EXAMPLES, Example, Finding, Kind, Rows, Severity
from preftune.audit.opening import Fault
from preftune.audit.seen import SeenPair
from preftune.data.formats.adapter import LEFT
from preftune.data.formats.columns import listing

_REASONS = 20
"""Most rows whose reasons are part of the finding."""

NO_PAIRS = Kind(
    "no_pairs",
    "error",
    "No preference pair in the data",
    "There is nothing to train on: a preference needs two answers to the same prompt.",
    "Add the missing answers, or name the format with --format or the columns with --columns chosen=good rejected=bad.",
)
REFUSED = Kind(
    "refused",
    "error",
    "Training would refuse these data",
    "preftune dpo stops before it loads the model, with the message given here.",
    "Follow the message; --columns and --format are the same for audit and dpo.",
)
UNREADABLE = Kind(
    "unreadable",
    "error",
    "Rows that are not a preference",
    "Training stops at the first of them.",
    "Correct or remove these rows; preftune convert writes a file without them.",
)
NOT_USED = Kind(
    "not_used",
    "info",
    "Columns with text that are not read",
    "Their text is not trained on.",
    "If one of them belongs to the prompt, name it: --columns prompt=COLUMN; a plus joins several.",
)

_SEVERITY: Mapping[str, Severity] = {"other_shape": "warning", "unrated": "warning"}
_EFFECT = "They are not trained on; all other rows are."


LEFT_OUT = {
    key: Kind(f"left_out_{key}", _SEVERITY.get(key, "info"), f"Left out: {wrong}", _EFFECT, fix.removesuffix(".") + ".")
    for key, (wrong, fix) in LEFT.items()
}


class RowsCheck(Check):
    """Counts rows and pairs, and reports rows without a pair."""

    kinds = (NO_PAIRS, REFUSED, UNREADABLE, NOT_USED, *LEFT_OUT.values())
    section = "rows"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.pairs = 0
        self.reasons: dict[str, str] = {}

    def see(self, batch: Sequence[SeenPair], faults: Sequence[Fault]) -> None:
        self.pairs += len(batch)
        for fault in faults:
            self.rows[UNREADABLE].add(fault.row, note=fault.reason)
            if len(self.reasons) < _REASONS:
                self.reasons.setdefault(str(fault.row), fault.reason)

    def findings(self, pairs: int) -> Iterator[Finding]:
        data = self.setting.data
        if not self.pairs:
            rows = Rows(count=data.rows)
            yield from NO_PAIRS.found(rows, of=data.rows, detail=data.refused or "")
        elif data.refused is not None:
            yield from REFUSED.found(Rows(count=data.rows), of=data.rows, detail=data.refused)
        detail = next((f"Row {row}, {reason}" for row, reason in self.reasons.items()), "")
        reasons = dict(islice(self.reasons.items(), _REASONS))
        yield from UNREADABLE.found(self.rows[UNREADABLE], of=data.rows, detail=detail, reasons=reasons)
        unused = data.pairs.unused if data.pairs is not None else ()
        detail = f"Not used: {listing(unused)}."
        yield from NOT_USED.found(Rows(count=data.rows if unused else 0), of=data.rows, detail=detail)
        for reason, left in data.left.items():
            rows = Rows(left.count, [Example(row) for row in left.rows[:EXAMPLES]])
            yield from LEFT_OUT[reason].found(rows, of=max(data.rows, left.count))

    def figures(self) -> Mapping[str, Any]:
        data = self.setting.data
        return {
            "rows": data.rows,
            "pairs": self.pairs,
            "format": data.format,
            "holds": data.holds,
            "unreadable": self.rows[UNREADABLE].count,
            "left_out": {reason: left.count for reason, left in data.left.items()},
            "notes": list(data.notes),
        }
