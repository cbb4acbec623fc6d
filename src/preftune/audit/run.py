"""The audit: one pass over the pairs with every check, here or on the workers of a cluster, and the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from preftune.audit.checks.check import Check, Setting
from preftune.audit.checks.lengths import CutRow, LengthsCheck
from preftune.audit.checks.registry import CHECKS
from preftune.audit.finding import SEVERITIES, Example, Finding
from preftune.audit.opening import Opened, sorted_out
from preftune.audit.seen import SeenPair, see
from preftune.data.pairs.blocks import Here, Rows, blocks_here, blocks_to_send
from preftune.errors import DatasetError
from preftune.version import __version__
from preftune.workers import Team
from preftune.workers.team import in_order

FORMAT = 1
"""Version of audit.json; raised when an older reader would misread it."""

_SHOWN = 2000
"""Most characters of a text that audit.json quotes."""

Progress = Callable[[int], None]


class Part(NamedTuple):
    """What the checks have seen of a block of rows."""

    checks: Sequence[Check]
    pairs: int
    rows: int


class Sent(NamedTuple):
    """A block as it is sent to a worker."""

    rows: Rows
    first: int
    """The position of its first row."""
    kinds: tuple[type[Check], ...]


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


def audit(setting: Setting, *, team: Team | None = None, progress: Progress = lambda rows: None) -> Audit:
    """Run every check that applies on all pairs, in one pass. Some checks read a part of the pairs a second time.

    Args:
        setting: the data and the options of the audit.
        team: workers that do `looking`; None: the pairs are checked in this process.
        progress: called with the number of rows of every block.
    """
    began = time.perf_counter()
    kinds = tuple(check for check in CHECKS if check.applies(setting))
    checks = [kind(setting) for kind in kinds]
    pairs = 0
    for part in _parts(setting, kinds, team):
        for check, seen in zip(checks, part.checks, strict=True):
            check.extend(seen)
        pairs += part.pairs
        progress(part.rows)
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


def _parts(setting: Setting, kinds: Sequence[type[Check]], team: Team | None) -> Iterator[Part]:
    """What the checks see of each block of rows, in order."""
    pairs, first = setting.data.pairs, 0
    if pairs is None:
        return
    if team is None:
        for block in blocks_here(pairs.attempts()):
            yield look(block, first, setting, kinds)
            first += len(block.read)
        return

    def sent() -> Iterator[Sent]:
        nonlocal first
        for rows in blocks_to_send(pairs):
            yield Sent(rows, first, tuple(kinds))
            first += len(rows.numbers)

    yield from in_order(team.compute(sent()))
    team.close()  # the workers that score need their place


def look(block: Rows | Here, first: int, setting: Setting, kinds: Sequence[type[Check]]) -> Part:
    """What checks see of a block.

    Args:
        first: the position of its first row.
    """
    good, faults = sorted_out(block, first, name=setting.data.name)
    batch = [see(pair, index) for index, pair in good]
    _encode(batch, setting)
    checks = [kind(setting) for kind in kinds]
    for check in checks:
        check.see(batch, faults)
    return Part(checks, len(batch), len(batch) + len(faults))


def looking(make: Callable[[], Setting]) -> Callable[[Sent], Part]:
    """What a worker does: `look` at blocks.

    Args:
        make: makes the setting on the worker, where `data` has the name of the data and no rows.
    """
    setting = make()
    return lambda sent: look(sent.rows, sent.first, setting, sent.kinds)


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
