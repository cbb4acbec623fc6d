"""Reference scores of a batch: from the cache if they are known, otherwise from the source, and never computed
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from preftune.logps.batch import GroupLogps, PackedBatch, pack
from preftune.logps.engine import Engine
from preftune.reference.fingerprint import completion_keys
from preftune.reference.run_scores import RunScores
from preftune.reference.sources import Source
from preftune.reference.store import Scores, ScoreStore
from preftune.types import TokenizedGroup


class _Autocast(Protocol):
    def __call__(self) -> AbstractContextManager[None]: ...


class ReferenceScores:
    """Gives the reference scores of a batch, and counts their cost.

    Scores are looked up per completion; groups with a miss are scored together and written to the cache.
    """

    def __init__(
        self,
        source: Source,
        engine: Engine,
        store: ScoreStore | None,
        *,
        autocast: _Autocast,
        anywhere: Callable[[bool], bool] = bool,
    ) -> None:
        """
        Args:
            anywhere: whether a flag is set on any rank that must compute when this one does.
        """
        self.source, self.engine, self.store, self.autocast = source, engine, store, autocast
        self.anywhere = anywhere
        self.memory = RunScores()
        """Scores of sources that cannot score again; the store may be off, or may be pruned meanwhile."""
        self.ahead: dict[bytes, Scores] = {}
        """Scores of this step that `fresh_keeping` has computed before the batch asks for them."""
        self.hits = 0
        self.misses = 0
        self.beforehand = 0
        """Completions that were scored in a pass before the first step; `misses` counts those of batches."""

    def __call__(self, model: nn.Module, batch: PackedBatch) -> GroupLogps:
        """Scores of all completions of the batch, on its device, float32."""
        keys = keys_of(batch.groups)
        new = {key: self.ahead.pop(key) for key in set(keys) if key in self.ahead}
        known = self._look_up([key for key in keys if key not in new])
        misses = sum(key not in known for key in keys)
        known |= new
        missing = _groups_with_a_miss(batch.groups, keys, known)
        self.hits, self.misses = self.hits + len(keys) - misses, self.misses + misses
        if self.anywhere(bool(missing)):  # another rank's model is a part of this one's
            known |= self.score_groups(model, missing or batch.groups[:1], batch.input_ids.device)
        return as_logps([known[key] for key in keys], batch)

    def known(self, batch: PackedBatch) -> GroupLogps | None:
        """Cached scores of the batch, NaN for misses; None if all are misses. Does not count as a
        look-up.
        """
        keys = keys_of(batch.groups)
        found = self._look_up(keys)
        if not found:
            return None
        lengths = [length for group in batch.groups for length in group.scored_lengths]
        missing = [np.full(length, np.nan, np.float32) for length in lengths]
        return as_logps([found.get(key, none) for key, none in zip(keys, missing, strict=True)], batch)

    def fresh(self, model: nn.Module, batch: PackedBatch) -> GroupLogps:
        """Scores computed now, without the cache, on the batch as it is packed; for the self-check."""
        with self.autocast():
            scores = self.source.score(model, batch, self.engine)
        return GroupLogps(scores, batch.owner_T, batch.completions)

    def forget(self) -> None:
        """Discards the cached scores, because they differ from the reference's."""
        self.memory.clear()
        self.ahead.clear()
        if self.store is not None:
            self.store.discard("its scores are not those of the reference")

    def missing(self, groups: Iterable[TokenizedGroup]) -> list[TokenizedGroup]:
        """The groups that would have to be scored."""
        return groups_without_scores(list(groups), self._look_up)

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, Scores]:
        known = self.memory.get(keys)
        if self.store is not None:
            found = self.store.get(key for key in keys if key not in known)
            known |= found
            if not self.source.live:
                self.memory.put(found)
        return known

    def score_groups(
        self, model: nn.Module, groups: Sequence[TokenizedGroup], device: torch.device
    ) -> dict[bytes, Scores]:
        """Scores groups with the source, whether they are known or not, and keeps the scores."""
        batch = pack(groups).to(device)
        scores = dict(zip(keys_of(groups), self._parts(self.fresh(model, batch), groups), strict=True))
        self._keep(scores)
        return scores

    def fresh_keeping(
        self, model: nn.Module, groups: Sequence[TokenizedGroup], kept: Sequence[bool], device: torch.device
    ) -> Tensor:
        """Scores of all completions, computed now, shape (K,).

        Args:
            kept: for each completion, whether its score is kept for its batch.
        """
        batch = pack(groups).to(device)
        scores = self.fresh(model, batch)
        of_all = zip(keys_of(groups), self._parts(scores, groups), kept, strict=True)
        own = {key: part for key, part, keeps in of_all if keeps}
        self.ahead |= own
        self._keep(own)
        return scores.sum_K

    @staticmethod
    def _parts(scores: GroupLogps, groups: Sequence[TokenizedGroup]) -> list[Scores]:
        """The scores of each completion."""
        lengths = [length for group in groups for length in group.scored_lengths]
        return np.split(scores.token_logps_T.float().cpu().numpy(), np.cumsum(lengths)[:-1])

    def _keep(self, scores: dict[bytes, Scores]) -> None:
        if self.store is not None:
            self.store.put(scores)
        if not self.source.live:  # the store may be lost or cleaned while the run goes on
            self.memory.put(scores)


def groups_without_scores(
    groups: Sequence[TokenizedGroup], look_up: Callable[[Sequence[bytes]], dict[bytes, Scores]]
) -> list[TokenizedGroup]:
    """The groups that would have to be scored.

    Args:
        look_up: returns the scores that are known, by the addresses of completions.
    """
    keys = keys_of(groups)
    return _groups_with_a_miss(groups, keys, look_up(keys))


def as_logps(parts: Sequence[Scores], batch: PackedBatch) -> GroupLogps:
    """Scores of the completions of a batch, one after the other, on its device."""
    scores = torch.from_numpy(np.concatenate(parts)).to(batch.input_ids.device)
    return GroupLogps(scores, batch.owner_T, batch.completions)


def keys_of(groups: Iterable[TokenizedGroup]) -> list[bytes]:
    """The addresses of all completions, group after group."""
    return [key for group in groups for key in completion_keys(group.prompt_ids, group.completions, group.scored)]


def _groups_with_a_miss(
    groups: Sequence[TokenizedGroup], keys: Sequence[bytes], known: dict[bytes, Scores]
) -> list[TokenizedGroup]:
    """The groups with a miss, in order; only the first of groups that lack the same completions."""
    missing, at = [], 0
    covered = set(known)
    for group in groups:
        own = keys[at : at + len(group.completions)]
        at += len(own)
        if not covered.issuperset(own):
            missing.append(group)
            covered.update(own)
    return missing
