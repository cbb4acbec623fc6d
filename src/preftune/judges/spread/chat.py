"""A chat model that workers hold, as judge; the batches are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from preftune.generation.lazy_model import ModelSource
from preftune.judges.cache import VerdictCache
from preftune.judges.llm_client import Asker, Conversation, LocalAsker, Questions, Take
from preftune.workers import Team
from preftune.workers.team import hand_out


class SpreadAsker(Asker):
    """An `Asker` that keeps the replies here."""

    def __init__(self, local: LocalAsker, cache: VerdictCache, team: Team) -> None:
        """
        Args:
            local: the same asker here; its weights are not loaded.
            team: workers that do `replying`.
        """
        super().__init__(cache)
        self.name, self.cache_key = local.name, local.cache_key
        self._local, self._team = local, team

    def _reply_to(self, questions: Questions, take: Take, *, max_tokens: int, as_json: bool, logprobs: bool) -> None:
        keys, form = list(questions), {"max_tokens": max_tokens, "as_json": as_json, "logprobs": logprobs}
        batches = self._local.batches_of(list(questions.values()))

        def block(batch: Sequence[int]) -> tuple[list[Conversation], Mapping[str, Any]]:
            return [questions[keys[number]] for number in batch], form

        hand_out(self._team, batches, block, lambda number, reply: take(keys[number], reply))


def replying(name: str, options: Mapping[str, Any], batch_size: int) -> Callable[[Any], Any]:
    """What a worker does: the replies to the questions of a batch.

    Args:
        options: of `ModelSource`.
    """
    asker = LocalAsker(ModelSource(name, **options), None, batch_size=batch_size)

    def work(block: tuple[Sequence[Conversation], Mapping[str, Any]]) -> list[str]:
        questions, form = block
        replies: dict[str, str] = {}
        keys = [str(number) for number in range(len(questions))]
        asker._reply_to(dict(zip(keys, questions, strict=True)), replies.__setitem__, **form)
        return [replies[key] for key in keys]

    return work
