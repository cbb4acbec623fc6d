"""Kinds of findings, and the findings of an audit with their counts and example rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Severity: TypeAlias = Literal["error", "warning", "info"]
"""error: pairs are lost or teach the wrong preference. warning: they are likely harmful. info: no harm is expected."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""In falling order of severity."""

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: its name, severity and texts."""

    name: str
    """Its name, as in `--fail-on`."""
    severity: Severity
    title: str
    effect: str
    """Its effect on training, as a sentence."""
    fix: str
    """The change, flag or command that fixes it, as a sentence."""

    def found(self, rows: Rows, *, of: int, detail: str = "", **figures: Any) -> Iterator[Finding]:
        """Yields a finding of these rows; nothing without rows.

        Args:
            of: number of rows or pairs that were checked, for the share.
        """
        if rows.count:
            share = rows.count / of if of else 1.0
            yield Finding(self, rows.count, min(1.0, share), tuple(rows.examples), detail, figures)


class Example(NamedTuple):
    """A row that shows a finding."""

    row: int
    """Its number in the raw data, from 0."""
    place: int | None = None
    """The position of its pair; None for a row without a pair."""
    note: str = ""
    """A short note on the row, such as "as in row 7"."""
    held_out: bool = False
    """Whether the row is one of the evaluation data."""


@dataclass(slots=True)
class Rows:
    """A number of rows, with the first `EXAMPLES` of them, so that memory does not grow with the number."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, row: int, index: int | None = None, note: str = "", *, held_out: bool = False) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(Example(row, index, note, held_out))

    def extend(self, other: Rows) -> None:
        """Adds rows that follow."""
        self.count += other.count
        self.examples.extend(other.examples[: EXAMPLES - len(self.examples)])


class Places:
    """Positions and raw rows of many pairs, 16 bytes each."""

    def __init__(self) -> None:
        self.index, self.row = array("q"), array("q")

    def keep(self, index: int, row: int) -> None:
        self.index.append(index)
        self.row.append(row)

    def extend(self, other: Self) -> None:
        """Adds pairs that follow."""
        self.index.extend(other.index)
        self.row.extend(other.row)

    def rows(self, places: NDArray[Any], note: Callable[[int], str] = lambda place: "") -> Rows:
        """The rows of the pairs at these places, with a note on each example."""
        examples = [Example(self.row[p], self.index[p], note(p)) for p in places[:EXAMPLES].tolist()]
        return Rows(len(places), examples)


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of an audit."""

    kind: Kind
    count: int
    """Number of rows or pairs."""
    share: float
    """Their share of all rows or pairs that were checked, 0 to 1."""
    examples: tuple[Example, ...] = ()
    detail: str = ""
    """A sentence with its numbers; may be empty."""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind.name

    @property
    def severity(self) -> Severity:
        return self.kind.severity

    def to_json(self) -> dict[str, Any]:
        """Plain values for audit.json."""
        kind = self.kind
        return {
            "name": kind.name,
            "severity": kind.severity,
            "title": kind.title,
            "count": self.count,
            "share": self.share,
            "rows": [example.row for example in self.examples],
            "detail": self.detail,
            "effect": kind.effect,
            "fix": kind.fix,
            "figures": dict(self.figures),
        }
