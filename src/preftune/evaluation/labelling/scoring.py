"""Scores for the answers of every prompt: each rated separately, or each two compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeAlias

from preftune.evaluation.labelling.pair_selection import wins
from preftune.evaluation.labelling.sample_groups import Group, LabelCounts
from preftune.judges.from_scores import ScoreJudge
from preftune.judges.protocol import (
    Graded,
    Judge,
    Question,
    Scorer,
    both_orders,
    decided,
    judge_all,
    judge_name,
    swapped_verdict,
)

Progress: TypeAlias = Callable[[int, int], None]


class Rater(Protocol):
    """Gives the answers of every group their scores; the two classes below are raters."""

    @property
    def name(self) -> str: ...

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]: ...


@dataclass(frozen=True, slots=True)
class Rated:
    """The scores of a group's answers, None without a score, and the comparisons that they were counted from."""

    scores: list[float | None]
    comparisons: Mapping[tuple[int, int], float] | None = None


class ByScore:
    """Rates every answer separately."""

    def __init__(self, scorer: Scorer) -> None:
        self._scores = ScoreJudge(scorer)
        self.name = judge_name(scorer)

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]:
        items = [(group.prompt, answer, group.row) for group in groups for answer in group.judged]
        scores = iter(self._scores.score_all(items, progress=progress))
        for group in groups:
            found = [next(scores) for _ in group.answers]
            counts.unrated += found.count(None)
            yield Rated(found)


class ByComparison:
    """Compares every two answers of a prompt; the score of an answer is the number of its wins.

    A judge that is not `symmetric` is called in both orders, and disagreement is a tie.
    """

    def __init__(self, judge: Judge, *, again: bool = False) -> None:
        """
        Args:
            again: ask a chat model once more what could not be read in an earlier run.
        """
        self._judge, self._again = judge, again
        self._symmetric = bool(getattr(judge, "symmetric", False))
        self.name = judge_name(judge)
        self.keys = [getattr(judge, "cache_key", None)]
        """The content address of the judge, if it has one."""

    def questions(self, groups: Sequence[Group]) -> list[Question]:
        """All that has to be asked."""
        asked = []
        for group in groups:
            for first, second in combinations(group.judged, 2):
                question = Question(group.prompt, first, second, group.row)
                asked += [question] if self._symmetric else [question, question.swapped]
        return asked

    def rate(self, groups: Sequence[Group], counts: LabelCounts, progress: Progress | None) -> Iterator[Rated]:
        asked = self.questions(groups)
        verdicts = iter(judge_all(self._judge, asked, again=self._again, progress=progress))
        for group in groups:
            comparisons = {}
            for i, j in combinations(range(len(group.answers)), 2):
                counts.asked += 1
                there = next(verdicts)
                back = swapped_verdict(there) if self._symmetric else next(verdicts)
                comparisons[i, j] = _outcome(there, back, counts)
            yield Rated(list(wins(len(group.answers), comparisons)), comparisons)


def _outcome(there: Graded | None, back: Graded | None, counts: LabelCounts) -> float:
    """The share of the comparison that the first answer wins; see `both_orders`."""
    if there is None or back is None:
        counts.unjudged += 1
        return 0.5
    counts.disagreed += decided(there) == decided(back) != "tie"
    return both_orders(there, back)
