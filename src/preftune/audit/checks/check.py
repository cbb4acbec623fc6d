"""What a check is: it sees every pair once, in batches, and says in the end what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from preftune.audit.finding import Finding, Kind, Places, Rows
from preftune.audit.opening import Fault, Opened
from preftune.audit.seen import SeenPair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from preftune.data.pairs.dataset import PairDataset
    from preftune.data.tokens.encode import Encoder


class Scorer(Protocol):
    """Something that knows how likely answers are under the reference."""

    name: str

    @property
    def computed(self) -> int:
        """Completions that were scored now; the others came from the cache."""
        ...

    def score(self, pairs: PairDataset, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """(indices, 4): log-probability of chosen and rejected in nats, tokens of chosen and rejected; NaN for none."""
        ...


@dataclass(slots=True)
class Setting:
    """What an audit is asked to look at."""

    data: Opened
    held_out: Opened | None = None
    encoder: Encoder | None = None
    """None: lengths are counted in words."""
    tokenizer_name: str | None = None
    max_length: int | None = None
    """Tokens of prompt + answer; None for no limit."""
    max_prompt_length: int | None = None
    near_duplicates: bool = True
    scorer: Scorer | None = None

    @property
    def unit(self) -> str:
        return "words" if self.encoder is None else "tokens"


class Check:
    """Base of the checks. A check keeps numbers and hashes, never texts: data may be larger than memory."""

    kinds: ClassVar[tuple[Kind, ...]] = ()
    """Every kind of finding that it can make."""

    section: ClassVar[str] = ""
    """Where its figures stand in audit.json; empty for a check without any."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rows = {kind: Rows() for kind in self.kinds}
        self.kept = Places()
        """The pairs of the check's own arrays."""

    @classmethod
    def applies(cls, setting: Setting) -> bool:
        """Whether there is anything for it to look at."""
        return True

    def see(self, batch: Sequence[SeenPair], faults: Sequence[Fault]) -> None:
        """Takes in a batch: its pairs, and the rows without a pair."""
        for seen in batch:
            self.take(seen)

    def take(self, seen: SeenPair) -> None:
        """Takes in a pair."""

    def add(self, kind: Kind, seen: SeenPair, note: str = "") -> None:
        """Counts a pair as a row of a finding."""
        self.rows[kind].add(seen.row, seen.index, note)

    def findings(self, pairs: int) -> Iterator[Finding]:
        """What was found, when all batches were seen.

        Args:
            pairs: how many there were.
        """
        for kind in self.kinds:
            yield from kind.found(self.rows[kind], of=pairs, **self.details(kind))

    def details(self, kind: Kind) -> Mapping[str, Any]:
        """The detail of a finding and its figures."""
        return {}

    def figures(self) -> Mapping[str, Any]:
        """Numbers for tables and plots."""
        return {}
