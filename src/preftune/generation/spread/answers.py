"""A generator whose model is held by the workers of a cluster; the batches are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preftune.generation.backends import ModelAnswerer
from preftune.generation.lazy_model import ModelSource
from preftune.generation.protocol import Answer, Rows, Take, Wanted
from preftune.generation.settings import SamplingSettings
from preftune.types import Text
from preftune.workers import Team
from preftune.workers.team import hand_out


class SpreadAnswerer:
    """A `Generator`: each batch of the model is answered by one worker, and passed on when it is complete."""

    def __init__(self, local: ModelAnswerer, team: Team) -> None:
        """
        Args:
            local: the same generator here; its weights are not loaded.
            team: workers that do `answering`.
        """
        self.local, self._team = local, team
        self.name = local.name

    def identity(self) -> Mapping[str, Any]:
        return self.local.identity()

    def ask(self, question: Callable[[ModelAnswerer], Any]) -> Any:
        """What a function says of the generator of a worker, which has the weights."""
        ((_, said),) = self._team.compute([question])
        return said

    def answer(self, prompts: Sequence[Text], rows: Rows, take: Take, wanted: Wanted = None) -> None:
        batches = [
            numbers
            for numbers in self.local.batches_of(prompts, rows)
            if wanted is None or not wanted.isdisjoint(numbers)
        ]
        hand_out(self._team, batches, lambda batch: ([prompts[n] for n in batch], [rows[n] for n in batch]), take)

    def release(self) -> None:
        """Ends the workers."""
        self._team.close()


def answering(
    name: str, options: Mapping[str, Any], settings: SamplingSettings, more: Mapping[str, Any]
) -> Callable[[Any], Any]:
    """What a worker does: it answers the prompts of a batch, or answers a question of `SpreadAnswerer.ask`.

    Args:
        options: of `ModelSource`.
        more: of `ModelAnswerer`.
    """
    answerer = ModelAnswerer(ModelSource(name, **options), settings, **more)

    def work(block: Any) -> Any:
        if callable(block):
            return block(answerer)
        prompts, rows = block
        answers: dict[int, Answer] = {}
        answerer.answer(prompts, rows, answers.__setitem__)
        return [answers[number] for number in range(len(prompts))]

    return work
