"""What scores of workers are kept under, and whether all workers compute the same ones."""

from __future__ import annotations

from typing import NamedTuple, Self

from preftune.errors import RequestError
from preftune.reference.scores import ReferenceScores
from preftune.reference.store import ScoreStore
from preftune.storage.cache_folder import cache_folder


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
