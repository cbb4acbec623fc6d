"""The audit: one pass over the pairs with every check, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from preftune.audit.checks.check import Setting
from preftune.audit.checks.lengths import CutRow, LengthsCheck
from preftune.audit.checks.registry import CHECKS
from preftune.audit.finding import SEVERITIES, Example, Finding
from preftune.audit.opening import Opened
from preftune.audit.seen import SeenPair, see
from preftune.errors import DatasetError
from preftune.version import __version__

FORMAT = 1
"""Version of audit.json; raised when an older reader would misread it."""

_SHOWN = 2000
"""Most characters of a text that audit.json quotes."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit."""

    name: str
    findings: tuple[Finding, ...]
    """Findings in falling order of severity."""
    figures: dict[str, Any]
    examples: dict[str, list[dict[str, Any]]]
    """Name of a finding -> its example rows with their texts, cut to 2,000 characters each."""
    seconds: float
    cut_rows: tuple[CutRow, ...] = field(default=(), repr=False)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """Time of the audit in UTC, ISO 8601."""

    @property
    def rows(self) -> int:
        return int(self.figures["rows"]["rows"])

    @property
    def pairs(self) -> int:
        return int(self.figures["rows"]["pairs"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for audit.json."""
        return {
            "format": FORMAT,
            "preftune": __version__,
            "created": self.created,
            "data": self.name,
            "rows": self.rows,
            "pairs": self.pairs,
            "seconds": round(self.seconds, 2),
            "findings": [finding.to_json() for finding in self.findings],
            "figures": self.figures,
            "examples": self.examples,
        }


def audit(setting: Setting, *, progress: Progress = lambda rows: None) -> Audit:
    """Run every check that applies on all pairs, in one pass. Some checks read a part of the pairs a second time.

    Args:
        setting: the data and the options of the audit.
        progress: called with the number of rows of every batch.
    """
    began = time.perf_counter()
    checks = [check(setting) for check in CHECKS if check.applies(setting)]
    pairs = 0
    for good, faults in setting.data.batches():
        batch = [see(pair, index) for index, pair in good]
        _encode(batch, setting)
        for check in checks:
            check.see(batch, faults)
        pairs += len(batch)
        progress(len(batch) + len(faults))
    findings = sorted(
        (finding for check in checks for finding in check.findings(pairs)), key=lambda f: SEVERITIES.index(f.severity)
    )
    return Audit(
        name=setting.data.name,
        findings=tuple(findings),
        figures={check.section: dict(check.figures()) for check in checks if check.section},
        examples={finding.name: list(_quoted(finding.examples, setting)) for finding in findings},
        seconds=time.perf_counter() - began,
        cut_rows=tuple(row for check in checks if isinstance(check, LengthsCheck) for row in check.cut_rows()),
    )


def _encode(batch: Sequence[SeenPair], setting: Setting) -> None:
    """Tokenise the pairs, in place. Conversations get no tokens without a chat template, which a check reports."""
    if setting.encoder is None:
        return
    chat = bool(getattr(setting.encoder.tokenizer, "chat_template", None))
    able = [seen for seen in batch if chat or isinstance(seen.pair.prompt, str)]
    for seen, encoded in zip(able, setting.encoder.encode([seen.pair.example for seen in able]), strict=True):
        seen.encoded = encoded


def _quoted(examples: Sequence[Example], setting: Setting) -> Iterator[dict[str, Any]]:
    """Example rows for audit.json: their texts with roles, or the raw row if it gives no pair."""
    for example in examples:
        shown: dict[str, Any] = {"row": example.row, "note": example.note}
        data = setting.held_out if example.held_out else setting.data
        assert data is not None
        if example.place is not None:
            (_, pair), *_ = data.at([example.place])
            shown |= {part: _short(_with_roles(getattr(pair, part))) for part in ("prompt", "chosen", "rejected")}
        else:
            shown["raw"] = _short(_raw(data, example.row))
        yield shown


def _with_roles(text: Any) -> str:
    if isinstance(text, str):
        return text
    return "\n\n".join(f"[{turn['role']}] {turn.get('content') or turn.get('tool_calls') or ''}" for turn in text)


def _raw(data: Opened, row: int) -> str:
    raw = None if data.pairs is None else data.pairs.raw
    try:
        return "" if raw is None else repr(dict(raw.with_format(None)[row]))
    except (DatasetError, IndexError):
        return ""


def _short(text: str) -> dict[str, Any]:
    """The first `_SHOWN` characters of a text, and its length. Lone surrogates are replaced, as UTF-8 has none."""
    shown = text[:_SHOWN].encode("utf-8", "replace").decode("utf-8")
    return {"text": shown, "characters": len(text)}
