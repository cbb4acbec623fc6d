"""What an audit can find, and what it found: kinds of findings, and findings with their counts and example rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Severity: TypeAlias = Literal["error", "warning", "info"]
"""error: pairs are lost or teach the wrong thing. warning: they likely hurt. info: worth knowing."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""The worst first."""

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding: its words, without numbers."""

    name: str
    """As `--fail-on` names it."""
    severity: Severity
    title: str
    effect: str
    """What it does to training, in one sentence."""
    cure: str
    """The flag or command that fixes it, in one sentence."""

    def found(self, rows: Rows, *, of: int, detail: str = "", **figures: Any) -> Iterator[Finding]:
        """A finding of these rows; None without rows.

        Args:
            of: rows or pairs examined, for the share.
        """
        if rows.count:
            share = rows.count / of if of else 1.0
            yield Finding(self, rows.count, min(1.0, share), tuple(rows.examples), detail, figures)


class Example(NamedTuple):
    """A row that shows a finding."""

    row: int
    """Its number in the data as they were opened, from 0."""
    place: int | None = None
    """The position of its pair; None for a row that gives none."""
    note: str = ""
    """What is to be seen there ("as in row 7")."""
    held_out: bool = False
    """Whether the row is one of the evaluation data."""


@dataclass(slots=True)
class Rows:
    """A count of rows with the first few of them. Memory does not grow with the count."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, row: int, index: int | None = None, note: str = "", *, held_out: bool = False) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(Example(row, index, note, held_out))


class Places:
    """Positions and raw rows of many pairs, 16 bytes each."""

    def __init__(self) -> None:
        self.index, self.row = array("q"), array("q")

    def keep(self, index: int, row: int) -> None:
        self.index.append(index)
        self.row.append(row)

    def rows(self, places: NDArray[Any], note: Callable[[int], str] = lambda place: "") -> Rows:
        """The pairs at these places, with a note on each of the first few."""
        examples = [Example(self.row[p], self.index[p], note(p)) for p in places[:EXAMPLES].tolist()]
        return Rows(len(places), examples)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found."""

    kind: Kind
    count: int
    """Rows or pairs."""
    share: float
    """Of all rows or pairs that were examined, 0..1."""
    examples: tuple[Example, ...] = ()
    detail: str = ""
    """What the numbers say, in one sentence."""
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
            "cure": kind.cure,
            "figures": dict(self.figures),
        }
