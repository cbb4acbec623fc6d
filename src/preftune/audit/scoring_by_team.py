"""Log-probabilities of the pairs by the workers of a cluster: the batches and the cache of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from preftune.audit.scoring import Block, PairReader, ReferenceScorer, rows_of_scores, sums
from preftune.data.pairs.dataset import PairDataset
from preftune.logps import pack
from preftune.logps.score_groups import ScoringBudget
from preftune.reference import Address, ScoreStore, as_logps, completion_keys, groups_without_scores
from preftune.reference.store import Scores
from preftune.types import TokenizedGroup
from preftune.workers import Team
from preftune.workers.team import in_order

Batches = list[list[TokenizedGroup]]
Answer = tuple[Address, str, dict[bytes, Scores]]
"""Of a worker: the address of its scores, the type of its device, and the scores."""
_COMING: Scores = np.empty(0, np.float32)
"""Instead of a score that a worker computes."""


def scoring_work(make: Callable[[], ReferenceScorer]) -> Callable[[Batches], Answer]:
    """What a worker does: the scores of some batches.

    Args:
        make: makes its scorer.
    """
    scorer = make()
    store, scorer.scores.store = scorer.scores.store, None  # the caller keeps the scores
    assert store is not None
    address = Address.of(store, scorer.scores)

    def work(batches: Batches) -> Answer:
        found: dict[bytes, Scores] = {}

        def score(groups: Sequence[TokenizedGroup]) -> Sequence[None]:
            found.update(scorer.fresh(groups))
            return [None] * len(groups)

        for batch in batches:
            scorer.budget.score(batch, score)
        return address, scorer.device.type, found

    return work


class TeamScorer:
    """Scores pairs under the model as received, by workers that do `scoring_work`."""

    def __init__(self, name: str, reader: PairReader, team: Team) -> None:
        self.name, self.reader, self.team = name, reader, team
        self.computed = 0
        """Number of completions that were not in the cache."""

    def score(self, pairs: PairDataset, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The rows of `Scorer.score`.

        Raises: PreftuneError: workers differ, a single pair does not fit, or the scores cannot be kept.
        """
        ((_, (address, device, _)),) = self.team.compute([[]])
        store, under = address.open(), list[Block]()
        budget = ScoringBudget(device, advice="")
        sent: set[bytes] = set()

        def blocks() -> Iterator[Batches]:
            for block in self.reader.blocks(pairs, indices):
                under.append(block)
                yield _missing(block, budget, store, sent)

        with rows_of_scores(len(indices)) as rows:
            for other, _, scores in in_order(self.team.compute(blocks())):
                address.check(other)
                store.put(scores)
                store.check_kept()
                sent.difference_update(scores)
                self.computed += len(scores)
                block = under.pop(0)
                rows.add(block, _rows(block, store))
            return rows.found


def _missing(block: Block, budget: ScoringBudget, store: ScoreStore, sent: set[bytes]) -> Batches:
    """The batches of one process, without what has a score or gets one from an earlier batch.

    Args:
        sent: keys of completions whose scores are computed now; those of the block are added.
    """

    def look_up(keys: Sequence[bytes]) -> dict[bytes, Scores]:
        return dict.fromkeys(sent.intersection(keys), _COMING) | store.get(keys)

    batches: Batches = []
    for places in budget.batches(block.groups):
        missing = groups_without_scores([block.groups[place] for place in places], look_up)
        sent.update(key for group in missing for key in _keys(group))
        batches += [missing] if missing else []
    return batches


def _rows(block: Block, store: ScoreStore) -> list[NDArray[np.float64]]:
    """The rows of a block whose scores are in the store."""
    if not block.groups:
        return []
    keys = [key for group in block.groups for key in _keys(group)]
    known = store.get(keys)
    batch = pack(block.groups)
    return sums(as_logps([known[key] for key in keys], batch), batch)


def _keys(group: TokenizedGroup) -> list[bytes]:
    return completion_keys(group.prompt_ids, group.completions, group.scored)
