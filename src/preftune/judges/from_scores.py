"""A scorer as judge of two answers: the higher score wins, and the scores are reported too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.errors import RequestError
from preftune.judges.cache import verdict_key
from preftune.judges.protocol import Item, Judgement, Progress, Question, Scorer, judge_name, score_all
from preftune.types import Text

TIE_WITHIN = 0.01
"""Points of reward that are no difference: a Bradley-Terry probability of 50.25%, and less than bfloat16 resolves at a
score of 2."""


class ScoreJudge:
    """Compares answers by their scores. Symmetric: an answer's score does not depend on what it is compared with."""

    symmetric = True

    def __init__(self, scorer: Scorer, *, tie_within: float = TIE_WITHIN) -> None:
        """
        Args:
            tie_within: scores that differ by no more are a tie.
        """
        if not 0 <= tie_within < math.inf:
            raise RequestError(
                f"--tie_within {tie_within:g}: give the largest difference in points that counts as a tie, 0 or more."
            )
        self.scorer, self.tie_within = scorer, tie_within
        self._scores: dict[str, float | None] = {}
        self.name = judge_name(scorer)
        if getattr(scorer, "cache_key", None) is not None:
            self.cache_key = f"{scorer.cache_key} {tie_within:g}"  # type: ignore[attr-defined]

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        (verdict,) = self.judge_all([Question(prompt, answer_a, answer_b, row)])
        return verdict or "tie"

    def judge_all(
        self, questions: Sequence[Question], *, again: bool = False, progress: Progress | None = None
    ) -> list[Judgement | None]:
        """None where one of the two answers could not be rated. `again` changes nothing: scores are computed once."""
        items = [(q.prompt, answer, q.row) for q in questions for answer in (q.answer_a, q.answer_b)]
        scores = self.score_all(items, progress=progress)
        return [self._verdict(a, b) for a, b in zip(scores[::2], scores[1::2], strict=True)]

    def score_all(self, items: Sequence[Item], *, progress: Progress | None = None) -> list[float | None]:
        """The score of every answer; None for one that the scorer cannot rate.

        Args:
            items: prompt, answer and row of each.
            progress: called with answers done and answers in all.
        Raises: RequestError for a score that is not a finite number.
        """
        keys = [verdict_key(*item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._scores}
        scores = score_all(self.scorer, list(missing.values()), progress=progress)
        self._scores |= dict(zip(missing, scores, strict=True))
        return [self._scores[key] for key in keys]

    def _verdict(self, a: float | None, b: float | None) -> Judgement | None:
        if a is None or b is None:
            return None
        if abs(a - b) <= self.tie_within:
            return "tie"
        return "a" if a > b else "b"
