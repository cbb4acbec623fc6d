"""The reference model: the source of its scores, and the cache that keeps them.

`sources` determines choice of the reference model; `store` keeps its scores by content, so that they are never wrong.

    address          scores that workers compute
    fingerprint      addresses of scores; NUMERICS_VERSION
    inventory        lists, prunes and verifies the folder of scores
    module_settings  attributes of modules that the configuration does not make
    moving           a reference that follows the policy
    run_scores       scores of a run whose reference cannot be asked again
    scores           scores of a batch, from the cache or the source
    sources          choice of the reference model
    store            scores on disk
"""

from preftune.reference.address import Address, FilledByWorkers
from preftune.reference.fingerprint import Numerics, completion_keys, fingerprint
from preftune.reference.moving import MovingCopy
from preftune.reference.scores import ReferenceScores, as_logps, groups_without_scores, keys_of
from preftune.reference.sources import (
    AdapterOff,
    AsReceived,
    ExplicitModel,
    FrozenCopy,
    NoReference,
    Source,
    adapters_off,
    as_received_without_adapters,
    choose_source,
    inference,
    unwrap,
)
from preftune.reference.store import ScoreStore

__all__ = [
    "AdapterOff",
    "Address",
    "AsReceived",
    "ExplicitModel",
    "FilledByWorkers",
    "FrozenCopy",
    "MovingCopy",
    "NoReference",
    "Numerics",
    "ReferenceScores",
    "ScoreStore",
    "Source",
    "adapters_off",
    "as_logps",
    "as_received_without_adapters",
    "choose_source",
    "completion_keys",
    "fingerprint",
    "groups_without_scores",
    "inference",
    "inventory",
    "keys_of",
    "module_settings",
    "sources",
    "store",
    "unwrap",
]
