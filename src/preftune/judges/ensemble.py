"""Several scorers as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from preftune.errors import RequestError
from preftune.judges.cache import verdict_key
from preftune.judges.protocol import Item, Progress, Scorer, judge_name, score_all
from preftune.types import Text

How: TypeAlias = Literal["mean", "min", "mean-std"]
HOWS: tuple[How, ...] = get_args(How)


class EnsembleScorer:
    """Rates answers by several scorers, all of which must rate one for it to have a score.

    `mean` of their scores; `min`, the least of them (worst-case optimisation in Coste et al. 2023, arXiv:2310.02743);
    or `mean-std`, the mean less their standard deviation (there, uncertainty-weighted). The last two compare scores
    of different members, whose zeros must mean the same: train them with centring.
    """

    def __init__(self, members: Sequence[Scorer], *, how: str = "mean") -> None:
        """
        Raises: RequestError for an unknown way, or no members.
        """
        if how not in HOWS:
            raise RequestError(f"--reward_ensemble {how}: give {', '.join(HOWS)}.")
        if not members:
            raise RequestError("The ensemble has no members. Give reward:A,B,C.")
        self.members, self.how = tuple(members), how
        self.name = f"{how} of {', '.join(map(judge_name, members))}"
        keys = [getattr(member, "cache_key", None) for member in members]
        if all(key is not None for key in keys):
            self.cache_key = verdict_key("ensemble", how, *map(str, keys))

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float | None:
        return self.score_all([(prompt, answer, row)])[0]

    def score_all(self, items: Sequence[Item], *, progress: Progress | None = None) -> list[float | None]:
        """The score of every answer; None for one that a member cannot rate.

        Args:
            progress: called with scores done and scores in all, of all members.
        """
        tables = [
            score_all(member, items, progress=self._shifted(progress, number))
            for number, member in enumerate(self.members)
        ]
        return [combined(scores, self.how) for scores in zip(*tables, strict=True)]

    def _shifted(self, progress: Progress | None, number: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(number * total + done, len(self.members) * total)


def combined(scores: Sequence[float | None], how: str) -> float | None:
    """One score of several; None if one of them is."""
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    mean = math.fsum(known) / len(known)
    if how == "mean":
        return mean
    if how == "min":
        return min(known)
    return mean - deviation(known)


def deviation(scores: Sequence[float]) -> float:
    """How far several disagree: the standard deviation between them."""
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
