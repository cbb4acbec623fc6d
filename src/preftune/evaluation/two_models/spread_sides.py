"""Both sides of an evaluation on the workers of a cluster; the batches are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from preftune.evaluation.two_models.open_models import AnswerOptions, Matchup, match_up
from preftune.generation.backends import GivenAnswers, ModelAnswerer, TwoSides
from preftune.generation.protocol import Answer, Rows, Side, Take
from preftune.types import Text
from preftune.workers import Pool, Team
from preftune.workers.team import hand_out


class SpreadSides(TwoSides):
    """Sides whose models are held by workers. What needs no model, or stands behind an address, is answered here."""

    def __init__(self, sides: TwoSides, team: Team) -> None:
        """
        Args:
            sides: the same sides here; their weights are not loaded.
            team: workers that do `answering`.
        """
        super().__init__(sides.sides["base"], sides.sides["aligned"])
        self._team = team

    def stream(self, side: Side, prompts: Sequence[Text], rows: Rows, take: Take) -> None:
        batches_of = getattr(self.sides[side], "batches_of", None)
        if batches_of is None:
            super().stream(side, prompts, rows, take)
            return

        def block(batch: Sequence[int]) -> tuple[Side, list[Text], Rows]:
            return side, [prompts[n] for n in batch], [rows[n] for n in batch]

        hand_out(self._team, batches_of(prompts, rows), block, take)

    def release(self) -> None:
        """Ends the workers, which start again when they are needed."""
        self._team.close()


def spread(match: Matchup, pool: Pool, model: str, base: str | None, options: AnswerOptions) -> Matchup:
    """The same match, answered by workers.

    Args:
        model, base, options: those of `match_up`.
    """
    local = all(isinstance(side, ModelAnswerer | GivenAnswers) for side in match.generate.sides.values())
    options = replace(
        options,
        backend="transformers" if local else options.backend,  # of workers with vLLM and a machine without
        conduct=None,
        budget=None,
    )
    team = pool.team(partial(answering, model, base, options), gpu=True)
    return replace(match, generate=SpreadSides(match.generate, team))


def answering(model: str, base: str | None, options: AnswerOptions) -> Callable[[Any], list[Answer]]:
    """What a worker does: it answers the prompts of a batch for a side.

    Args:
        options: without what endpoints need, which no worker asks.
    """
    generate = match_up(model, base, ExitStack(), options).generate

    def work(block: tuple[Side, Sequence[Text], Rows]) -> list[Answer]:
        return generate(*block)

    return work
