"""The protocols of a pool of workers, and of a team that does one kind of work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

Build: TypeAlias = Callable[[], Callable[[Any], Any]]
"""Called once on each worker: loads what the work needs, and returns the function from a block to its result. Build,
blocks and results are pickled.
"""


class Team(Protocol):
    """Workers that have done the same preparation."""

    def compute(self, blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The number and the result of every block as soon as it is computed, each once. Blocks are consumed as workers
        become free. The block of a worker that is lost is computed again by another.

        Raises: what the work raises, if it is a PreftuneError; PreftuneError for any other error of a worker.
        """
        ...

    def close(self) -> None:
        """Ends the workers; they start again when there are blocks."""
        ...


class Pool(Protocol):
    """A cluster."""

    def team(self, build: Build, *, gpu: bool) -> Team:
        """Workers, which start with the first block.

        Args:
            gpu: whether each one uses a GPU, where the cluster has any.
        """
        ...


def in_order(results: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """The results of blocks in the order of the blocks; those that came too early wait in memory."""
    early: dict[int, Any] = {}
    next_one = 0
    for number, result in results:
        early[number] = result
        while next_one in early:
            yield early.pop(next_one)
            next_one += 1


def hand_out(
    team: Team, batches: Sequence[Sequence[int]], block: Callable[[Sequence[int]], Any], take: Callable[[int, Any], Any]
) -> None:
    """Lets workers compute batches of numbered items.

    Args:
        block: makes the block of a batch; its result is a list with one entry for each item.
        take: called with the number and the result of each item, as batches are computed.
    """
    for place, results in team.compute(map(block, batches)):
        for number, result in zip(batches[place], results, strict=True):
            take(number, result)
