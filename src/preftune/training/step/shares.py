"""Several ranks in a method that samples: each does a share of the work, and all have every result.

All ranks ask the same prompts and hold the same answers, scores and steps in the same order, so that advantages, KL
control and running moments are those of one process without any exchange of their own. Shared is what takes time:
sampling, scoring, measuring, and the passes of a step.
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
    """The places among `count` that are this rank's: a block, of which no two ranks' differ by more than one."""
    rank, ranks = trainer.args.process_index, trainer.args.world_size
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def shared(trainer: TrainerView, count: int, work: Callable[[range], Sequence[Result]]) -> list[Result]:
    """All results of some work, each computed by one rank.

    Args:
        work: the results of some places, in their order; not called for no places.
    Raises: what the first rank with an error raised, on every rank.
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
    """Counts the tokens of all ranks on one of them: the limits add the ranks up."""
    trainer.limits.count(tokens if trainer.is_world_process_zero() else 0)


def everyones(
    trainer: TrainerView, figures: Sequence[tuple[Mapping[str, Tensor], Tensor]]
) -> list[tuple[dict[str, float], float]]:
    """What all ranks measured in a step, each figure a sum with what it is over."""
    own = [({name: float(value) for name, value in sums.items()}, float(weight)) for sums, weight in figures]
    return own if trainer.args.world_size == 1 else [one for ranks in gather_object([own]) for one in ranks]
