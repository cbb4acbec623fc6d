"""Log-probabilities of the pairs by the workers of a cluster: the batches and the cache of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from preftune.audit.scoring import Block, PairReader, ReferenceScorer, sums, table_of_scores
from preftune.data.pairs.dataset import PairDataset
from preftune.logps import pack
from preftune.logps.score_groups import ScoringBudget
from preftune.reference import Address, FilledByWorkers, ScoreStore, as_logps, keys_of
from preftune.reference.store import Scores
from preftune.types import TokenizedGroup
from preftune.workers import Team
from preftune.workers.team import in_order

Batches = list[list[TokenizedGroup]]
Answer = tuple[Address, str, dict[bytes, Scores]]
"""Of a worker: the address of its scores, the type of its device, and the scores."""


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
        scores, under = FilledByWorkers(address), list[Block]()
        budget = ScoringBudget(device, advice="")

        def blocks() -> Iterator[Batches]:
            for block in self.reader.blocks(pairs, indices):
                under.append(block)
                yield _batches(block, budget, scores)

        with table_of_scores(len(indices)) as table:
            for other, _, found in in_order(self.team.compute(blocks())):
                scores.keep(other, found)
                block = under.pop(0)
                table.add(block, _rows(block, scores.store))
            self.computed += scores.computed
            return table.found


def _batches(block: Block, budget: ScoringBudget, scores: FilledByWorkers) -> Batches:
    """The batches of one process, without what has a score or gets one from an earlier batch."""
    batches: Batches = []
    for places in budget.batches(block.groups):
        if missing := scores.missing(block.groups[place] for place in places):
            scores.send(missing)
            batches.append(missing)
    return batches


def _rows(block: Block, store: ScoreStore) -> list[NDArray[np.float64]]:
    """The rows of a block whose scores are in the store."""
    if not block.groups:
        return []
    keys = keys_of(block.groups)
    known = store.get(keys)
    batch = pack(block.groups)
    return sums(as_logps([known[key] for key in keys], batch), batch)
