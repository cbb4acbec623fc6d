"""Scores that workers compute: what they are kept under, whether all workers compute the same ones, and which are
computed now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from preftune.errors import RequestError
from preftune.reference.scores import ReferenceScores, groups_without_scores, keys_of
from preftune.reference.store import Scores, ScoreStore
from preftune.storage.cache_folder import cache_folder
from preftune.types import TokenizedGroup

_COMING: Scores = np.empty(0, np.float32)
"""Instead of a score that a worker computes."""


class Address(NamedTuple):
    """Under what a worker's scores are kept."""

    fingerprint: str
    numerics: str
    note: tuple[tuple[str, str], ...]
    reference: str

    @classmethod
    def of(cls, store: ScoreStore, scores: ReferenceScores) -> Self:
        """The address of a worker's own store and source."""
        return cls(store.address[0], store.address[1], tuple(store.note.items()), scores.source.description)

    def open(self) -> ScoreStore:
        """The store on this machine."""
        folder = cache_folder() / "reference"
        return ScoreStore(folder, fingerprint=self.fingerprint, numerics=self.numerics, note=dict(self.note))

    def check(self, other: Address) -> None:
        """Raises: RequestError if another worker has another reference, or computes differently."""
        if other.fingerprint != self.fingerprint:
            raise RequestError(
                "The workers do not have the same reference: the model has other weights on some machines under "
                "the same name. Put one copy where all machines read it, or name a revision on the hub."
            )
        if other.numerics != self.numerics:
            raise RequestError(
                "The workers do not compute alike: their scores have the addresses "
                f"{self.numerics} and {other.numerics} ({dict(self.note)}, {dict(other.note)}). Use workers "
                "with the same kind of device and the same versions."
            )


class FilledByWorkers:
    """A store whose missing scores workers compute. One process would have the scores of a batch when the next one
    begins, so a completion that repeats is not sent again.
    """

    def __init__(self, address: Address) -> None:
        self.address, self.store = address, address.open()
        self.computed = 0
        """Number of completions that workers have scored."""
        self._sent: set[bytes] = set()

    def missing(self, groups: Iterable[TokenizedGroup]) -> list[TokenizedGroup]:
        """The groups that have no score and get none from a batch that was sent."""

        def look_up(keys: Sequence[bytes]) -> dict[bytes, Scores]:
            return dict.fromkeys(self._sent.intersection(keys), _COMING) | self.store.get(keys)

        return groups_without_scores(list(groups), look_up)

    def send(self, groups: Iterable[TokenizedGroup]) -> None:
        """Notes that these groups are sent to a worker."""
        self._sent.update(keys_of(groups))

    def keep(self, address: Address, scores: Mapping[bytes, Scores]) -> None:
        """Keeps what a worker has computed.

        Raises: RequestError if it computes differently; PreftuneError if the scores cannot be kept.
        """
        self.address.check(address)
        self.store.put(scores)
        self.store.check_kept()
        self._sent.difference_update(scores)
        self.computed += len(scores)
