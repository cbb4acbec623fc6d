"""Rules that workers call, a block of answers or comparisons at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from preftune.judges.cache import VerdictCache, verdict_key
from preftune.judges.protocol import Graded, Item, Progress, Question, is_graded, judge_all, judge_name, score_all
from preftune.workers import Team

_BLOCK = 500


class _SpreadRule:
    """The common part of rules that score and rules that compare."""

    def __init__(self, rule: Any, team: Team, cache: VerdictCache) -> None:
        """
        Args:
            rule: the rule here, for its name and promises.
            team: workers that do `calling`.
            cache: for a rule with a `cache_key`.
        """
        self.name, self.symmetric = judge_name(rule), bool(getattr(rule, "symmetric", False))
        self._key = getattr(rule, "cache_key", None)
        if self._key is not None:
            self.cache_key = self._key
        self._team, self._cache = team, cache

    def __call__(self, *content: Any) -> Any:
        return self._all([content], None)[0]

    def _all(self, contents: Sequence[Sequence[Any]], progress: Progress | None, *, again: bool = False) -> list[Any]:
        """What the rule says of every content, in order.

        Args:
            again: of `judge_all`.
        """
        keys = [] if self._key is None else [verdict_key("rule", self._key, *content) for content in contents]
        known = {key: value for key, value in self._cache.get(keys).items() if self._reusable(value, again)}
        found = {number: known[key] for number, key in enumerate(keys) if key in known}
        missing = [number for number in range(len(contents)) if number not in found]
        blocks = [missing[start : start + _BLOCK] for start in range(0, len(missing), _BLOCK)]
        sent = (([contents[number] for number in block], again) for block in blocks)
        for place, said in self._team.compute(sent):
            found |= zip(blocks[place], said, strict=True)
            if keys:
                new = {keys[number]: value for number, value in zip(blocks[place], said, strict=True)}
                self._cache.put(new, judge=self.name)
            if progress is not None:
                progress(len(found), len(contents))
        return [found[number] for number in range(len(contents))]

    def _reusable(self, value: Any, again: bool) -> bool:
        """Whether a value from the cache is used; earlier versions kept whatever a judge answered."""
        return not again if value is None else isinstance(value, float) or is_graded(value)


class SpreadJudge(_SpreadRule):
    """A rule that compares two answers."""

    def judge_all(
        self, questions: Sequence[Question], *, again: bool = False, progress: Progress | None = None
    ) -> list[Graded | None]:
        return self._all(questions, progress, again=again)


class SpreadScorer(_SpreadRule):
    """A rule that rates one answer."""

    def score_all(self, items: Sequence[Item], *, progress: Progress | None = None) -> list[float | None]:
        return self._all(items, progress)


def calling(load: Callable[[], tuple[Any, bool]]) -> Callable[[Any], Any]:
    """What a worker does: it calls the rule on the contents of a block.

    Args:
        load: returns the rule, and whether it scores.
    """
    rule, scores = load()
    return partial(_called, rule, scores)


def _called(rule: Any, scores: bool, block: tuple[Sequence[Any], bool]) -> list[Any]:
    contents, again = block
    if scores:
        return list(score_all(rule, contents))
    return list(judge_all(rule, [Question(*content) for content in contents], again=again))
