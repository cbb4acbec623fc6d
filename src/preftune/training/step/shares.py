"""Ranks of a method that samples: each rank does a share of the work, and all ranks get every result.

All ranks have the same prompts, answers, scores and steps in the same order, so that advantages, KL control and running
moments equal those of one process and need no exchange. Only the slow work is divided: sampling, scoring, measuring,
and the passes of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from accelerate.utils import gather_object
from torch import Tensor

from preftune.errors import PreftuneError, RequestError
from preftune.training.protocol import TrainerView

Result = TypeVar("Result")


def share(trainer: TrainerView, count: int) -> range:
    """This rank's block of `range(count)`. The sizes of two ranks' blocks differ by at most one."""
    rank, ranks = trainer.args.process_index, trainer.args.world_size
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def shared(trainer: TrainerView, count: int, work: Callable[[range], Sequence[Result]]) -> list[Result]:
    """All results of some work in the order of their places, each computed by one rank.

    Args:
        work: computes the results of a block of places, in their order; several ranks do not call it for an empty one.
    Raises: on several ranks, a rank that failed raises its own error, and the others that of the first rank that
        failed; RequestError in place of an error that is not a PreftuneError.
    """
    if trainer.args.world_size == 1:
        return list(work(range(count)))
    places = share(trainer, count)
    found: list[Result] = []
    failure: PreftuneError | None = None
    try:
        found = list(work(places)) if places else []
    except PreftuneError as error:
        failure = error
    except Exception as error:
        failure = RequestError(f"process {trainer.args.process_index} failed with {type(error).__name__}: {error}")
        failure.__cause__ = error
    ranks: list[tuple[list[Result], PreftuneError | None]] = gather_object([(found, failure)])
    for _, of_another in ranks:
        if of_another is not None:
            raise failure or of_another
    return [result for results, _ in ranks for result in results]


def count_once(trainer: TrainerView, tokens: int) -> None:
    """Count `tokens`, the sum over all ranks, on rank 0 only, because the limits add the ranks."""
    trainer.limits.count(tokens if trainer.is_world_process_zero() else 0)


def everyones(
    trainer: TrainerView, figures: Sequence[tuple[Mapping[str, Tensor], Tensor]]
) -> list[tuple[dict[str, float], float]]:
    """The figures that all ranks measured in a step: each is sums by name, and the weight that they are over."""
    own = [({name: float(value) for name, value in sums.items()}, float(weight)) for sums, weight in figures]
    return own if trainer.args.world_size == 1 else [one for ranks in gather_object([own]) for one in ranks]
