"""The base class of the checks. A check gets the pairs of a block; checks of all blocks, joined in order, give the
findings.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from preftune.audit.finding import Finding, Kind, Places, Rows
from preftune.audit.opening import Fault, Opened
from preftune.audit.seen import SeenPair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from preftune.data.pairs.dataset import PairDataset
    from preftune.data.tokens.encode import Encoder


class Scorer(Protocol):
    """Computes log-probabilities of pairs under the reference."""

    name: str

    @property
    def computed(self) -> int:
        """Number of completions that were not in the cache."""
        ...

    def score(self, pairs: PairDataset, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-probabilities of chosen and rejected in nats, and their scored tokens, shape (indices, 4), float64; NaN
        for a pair that cannot be scored.
        """
        ...


@dataclass(slots=True)
class Setting:
    """The data and the options of an audit."""

    data: Opened
    held_out: Opened | None = None
    encoder: Encoder | None = None
    """None to count lengths in words."""
    tokenizer_name: str | None = None
    max_length: int | None = None
    """Most tokens of prompt and answer; None for no limit."""
    max_prompt_length: int | None = None
    near_duplicates: bool = True
    scorer: Scorer | None = None

    @property
    def unit(self) -> str:
        return "words" if self.encoder is None else "tokens"


class Check:
    """Base of the checks. A check keeps numbers and hashes, not texts, because data may be larger than memory."""

    kinds: ClassVar[tuple[Kind, ...]] = ()
    """The kinds of its findings."""

    section: ClassVar[str] = ""
    """Key of its figures in audit.json; empty for a check without figures."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rows = {kind: Rows() for kind in self.kinds}
        self.kept = Places()
        """The pairs of the check's own arrays."""

    @classmethod
    def applies(cls, setting: Setting) -> bool:
        """Whether the check can run with this setting."""
        return True

    def see(self, batch: Sequence[SeenPair], faults: Sequence[Fault]) -> None:
        """Process a block: its pairs, and the rows that are not a preference."""
        for seen in batch:
            self.take(seen)

    def take(self, seen: SeenPair) -> None:
        """Process a pair."""

    def extend(self, other: Self) -> None:
        """Adds what a check has seen of the rows that follow."""
        for name, theirs in vars(other).items():
            if name != "setting":
                setattr(self, name, _joined(getattr(self, name), theirs))

    def __getstate__(self) -> dict[str, Any]:
        """What it has seen, without the setting, as a worker sends it."""
        return {name: value for name, value in vars(self).items() if name != "setting"}

    def add(self, kind: Kind, seen: SeenPair, note: str = "") -> None:
        """Count a pair as a row of a finding."""
        self.rows[kind].add(seen.row, seen.index, note)

    def findings(self, pairs: int) -> Iterator[Finding]:
        """The findings, after all blocks.

        Args:
            pairs: number of pairs.
        """
        for kind in self.kinds:
            yield from kind.found(self.rows[kind], of=pairs, **self.details(kind))

    def details(self, kind: Kind) -> Mapping[str, Any]:
        """The detail and the figures of a finding, as keyword arguments of `Kind.found`."""
        return {}

    def figures(self) -> Mapping[str, Any]:
        """Numbers for tables and plots."""
        return {}


def _joined(ours: Any, theirs: Any) -> Any:
    """What was seen of some rows, and of the rows that follow."""
    match ours:
        case bool():
            return ours
        case str():
            return ours or theirs
        case int():
            return ours + theirs
        case Counter():
            ours.update(theirs)
        case dict():
            for key, value in theirs.items():
                ours[key] = _joined(ours[key], value) if key in ours else value
        case tuple():
            return tuple(map(_joined, ours, theirs))
        case array() | list() | Rows() | Places():
            ours.extend(theirs)
    return ours
