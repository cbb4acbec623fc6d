"""Reference scores by workers of a cluster: each has the trainer of the training on a few rows, and scores batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from preftune.data import GroupDataset
from preftune.reference import Address, FilledByWorkers
from preftune.reference.store import Scores
from preftune.training.scoring.beforehand import Scored, draws_answers
from preftune.training.setup.reference import without_scores
from preftune.training.step.collate import shortest
from preftune.training.step.memory import score_in_parts
from preftune.types import TokenizedGroup
from preftune.workers import Team

_BATCHES = 16
"""Batches in a block."""
Batches = list[list[TokenizedGroup]]


def probes(dataset: GroupDataset) -> list[TokenizedGroup]:
    """The rows with which a worker's trainer is made: the shortest ones, as they choose the reference."""
    return [dataset[row] for row in shortest(dataset.lengths, 4)]


def scoring_work(trainer: Any) -> Callable[[Batches], tuple[Address, dict[bytes, Scores]]]:
    """What a worker does: the scores of the completions of some batches, and their address.

    Args:
        trainer: with a `scoring_config`, made with the probes.
    """
    reference = trainer.reference
    store, reference.store = reference.store, None  # the caller keeps the scores
    address = Address.of(store, reference)
    trainer.before_first_step(resumed=False)

    def work(batches: Batches) -> tuple[Address, dict[bytes, Scores]]:
        found: dict[bytes, Scores] = {}

        def score(groups: Sequence[TokenizedGroup]) -> Sequence[None]:
            found.update(reference.score_groups(trainer.model, groups, trainer.args.device))
            return [None] * len(groups)

        for batch in batches:
            score_in_parts(trainer, batch, score, work="reference")
        reference.memory.clear()
        return address, found

    return work


def score_on_team(team: Team, datasets: Sequence[GroupDataset], args: Any) -> Scored:
    """Scores all rows with workers that do `scoring_work`, and keeps the scores here.

    Args:
        args: the configuration.
    Raises: RequestError if workers compute differently; PreftuneError if the scores cannot be kept.
    """
    ((_, (address, _)),) = team.compute([[]])
    filled = FilledByWorkers(address)
    size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
    rows = sum(map(len, datasets))
    with tqdm(total=rows, desc="Reference scores", unit="row", disable=None) as bar:
        for _, (other, scores) in team.compute(_blocks(filled, datasets, size, bar.update)):
            filled.keep(other, scores)
    return Scored(rows, filled.computed, address.reference, filled.store.path, draws_answers(args))


def _blocks(
    filled: FilledByWorkers, datasets: Sequence[GroupDataset], size: int, passed: Callable[[int], Any]
) -> Iterator[Batches]:
    """What has no score yet, in the batches of one process."""

    def batches() -> Iterator[list[TokenizedGroup]]:
        for dataset in datasets:
            for batch in without_scores(filled.missing, dataset, range(len(dataset)), size, passed=passed):
                filled.send(batch)
                yield batch

    each = batches()
    while block := list(islice(each, _BATCHES)):
        yield block
