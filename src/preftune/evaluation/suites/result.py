"""The result of a suite: comparisons with the baseline, what got worse, and `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from preftune.statistics.paired import Comparison
from preftune.storage.jsonl import write_json

_BREAKDOWN_SHOWN = 8
"""Rows of a breakdown that a terminal shows; the file has all."""


class Part(NamedTuple):
    """How much of a suite was used."""

    taken: int
    of: int


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The evidence of one suite."""

    name: str
    comparisons: Sequence[Comparison]
    """The suite's figures; the first is its headline."""
    breakdown: Sequence[Comparison] = ()
    """The headline again by category, type or subset, its intervals widened for their number."""
    notes: Sequence[str] = ()
    """Notes that are necessary to interpret the figures."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of `summary.json`."""
    part: Part | None = None
    """Set when only a part of the suite was asked for."""

    @property
    def headline(self) -> Comparison:
        return self.comparisons[0]

    @property
    def worse(self) -> list[str]:
        """A sentence for each figure that got worse."""
        return [one.sentence() for one in (*self.comparisons, *self.breakdown) if one.verdict == "worse"]

    @property
    def figures(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        keys = ("name", "base", "aligned", "difference", "ci_low", "ci_high", "better")
        headline = {key: value for key, value in self.headline.to_dict().items() if key in keys}
        if self.part is not None:
            headline["name"] += f" ({self._part_words()})"
        return {
            "suite": self.name,
            "headline": headline,
            "sentences": self.sentences(),
            "worse": self.worse,
            "comparisons": [one.to_dict() for one in self.comparisons],
            "breakdown": [one.to_dict() for one in self.breakdown],
            "notes": list(self.notes),
            "part": None if self.part is None else self.part._asdict(),
            **self.details,
        }

    def sentences(self) -> list[str]:
        """The headline, what got worse, what got better, what showed no difference, and the notes."""
        part = "" if self.part is None else f" ({self._part_words()})"
        lines = [f"{self.name}{part}: {self.headline.sentence()}"]
        rest = self.comparisons[1:]
        # of a breakdown only what changed is worth a sentence
        changed = [one for one in self.breakdown if one.verdict != "no difference shown"]
        worse = [one.sentence() for one in (*rest, *changed) if one.verdict == "worse"]
        lines += [f"Got worse: {sentence}" for sentence in worse]
        lines += [one.sentence() for one in (*rest, *changed) if one.verdict == "better"]
        lines += [one.sentence() for one in rest if one.verdict == "no difference shown"]
        if not self.worse:
            lines.append(f"No metric of {self.name} got worse beyond chance.")
        return [*lines, *self.notes]

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows for a terminal: figure, baseline, aligned, difference with its interval, verdict."""
        breakdown = sorted(self.breakdown, key=lambda one: one.verdict == "no difference shown")
        shown = [one.row() for one in breakdown[:_BREAKDOWN_SHOWN]]
        return [one.row() for one in self.comparisons] + [(f"  {row[0]}", *row[1:]) for row in shown]

    def write(self, folder: Path) -> None:
        """`summary.json` of the suite's folder, replaced in one move."""
        write_json(folder / "summary.json", self.figures)

    def _part_words(self) -> str:
        assert self.part is not None
        return f"only {self.part.taken:,} of {self.part.of:,}"
