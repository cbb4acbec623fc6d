"""Reward models that workers hold; the batches are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from preftune.generation.lazy_model import ModelSource
from preftune.judges.cache import VerdictCache
from preftune.judges.reward_model import RewardModel, located, open_reward_model
from preftune.workers import Team


class SpreadRewardModel(RewardModel):
    """A `RewardModel` that encodes and keeps here, and computes on workers."""

    def __init__(self, source: ModelSource, team: Team, **options: Any) -> None:
        """
        Args:
            team: workers that do `rating`.
            options: of `RewardModel`.
        """
        super().__init__(self._none, **options)
        self._source, self._team = source, team
        self._alone: bool | None = None

    @staticmethod
    def _none() -> tuple[Any, Any]:
        raise NotImplementedError("the weights are on workers")

    @property
    def _tokenizer(self) -> Any:
        return self._source.tokenizer

    def _check_fit(self, token_ids: Sequence[Sequence[int]]) -> None:
        """The workers check, who have the model."""

    def _one_by_one(self) -> bool:
        if self._alone is None:
            ((_, self._alone),) = self._team.compute([(self._source.name, None)])
        return bool(self._alone)

    def _scored(self, batches: Sequence[Sequence[Mapping[str, list[int]]]]) -> Iterator[tuple[int, list[float]]]:
        yield from self._team.compute((self._source.name, batch) for batch in batches)


def spread_reward_model(
    name: str,
    team: Team,
    *,
    cache: VerdictCache | None = None,
    batch_size: int = 16,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> SpreadRewardModel:
    """The reward model of `open_reward_model`, on workers."""
    source, known = located(name, dtype=dtype, trust_remote_code=trust_remote_code)
    return SpreadRewardModel(source, team, cache=cache, batch_size=batch_size, **known)


def rating(options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What a worker does: the scores of a batch by a named model; without a batch, whether it takes one row at a time.

    Args:
        options: of `open_reward_model`.
    """
    models: dict[str, RewardModel] = {}

    def work(block: tuple[str, Sequence[Mapping[str, list[int]]] | None]) -> Any:
        name, batch = block
        if name not in models:
            models[name] = open_reward_model(name, **options)
        model = models[name]
        return model._one_by_one() if batch is None else model.scores_of(batch)

    return work
