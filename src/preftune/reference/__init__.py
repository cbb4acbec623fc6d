"""The reference: who supplies its scores, and the cache that keeps them."""

from preftune.reference.fingerprint import Numerics, completion_key, fingerprint
from preftune.reference.scores import ReferenceScores
from preftune.reference.sources import (
    AdapterOff,
    AsReceived,
    ExplicitModel,
    FrozenCopy,
    Source,
    adapters_off,
    choose_source,
    inference,
    unwrap,
)
from preftune.reference.store import ScoreStore

__all__ = [
    "AdapterOff",
    "AsReceived",
    "ExplicitModel",
    "FrozenCopy",
    "Numerics",
    "ReferenceScores",
    "ScoreStore",
    "Source",
    "adapters_off",
    "choose_source",
    "completion_key",
    "fingerprint",
    "inference",
    "unwrap",
]
