"""What workers do for judges, with a team in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from preftune.judges.cache import VerdictCache
from preftune.judges.protocol import Question
from preftune.judges.spread import reward
from preftune.judges.spread.rules import SpreadJudge, calling


class Alone:
    """A team of this process."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def compute(self, blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        return enumerate(map(self._work, blocks))

    def close(self) -> None:
        pass


def test_a_worker_opens_a_reward_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opening(name: str, **options: Any) -> Any:
        opened.append(name)
        return SimpleNamespace(_one_by_one=lambda: False, scores_of=len)

    monkeypatch.setattr(reward, "open_reward_model", opening)
    work = reward.rating({})
    blocks: list[Any] = [("a", None), ("a", [{}]), ("b", [{}, {}]), ("a", [{}])]
    assert [work(block) for block in blocks] == [False, 1, 2, 1]
    assert opened == ["a", "b"]


class Undecided:
    """A rule that gives no verdict before it is asked again."""

    def __init__(self, cache_key: str | None) -> None:
        self.cache_key = cache_key

    def __call__(self, *question: Any) -> Any:
        raise NotImplementedError

    def judge_all(self, questions: Any, *, again: bool = False, progress: Any = None) -> list[Any]:
        return ["a" if again else None for _ in questions]


@pytest.mark.parametrize("cache_key", [None, "undecided-1"])
def test_a_rule_on_workers_is_asked_again(tmp_path: Path, cache_key: str | None) -> None:
    rule, questions = Undecided(cache_key), [Question("p", "a", str(number)) for number in range(3)]
    with closing(VerdictCache(tmp_path)) as cache:
        judge = SpreadJudge(rule, Alone(calling(lambda: (rule, False))), cache)
        assert judge.judge_all(questions) == [None] * 3
        assert judge.judge_all(questions) == [None] * 3
        assert judge.judge_all(questions, again=True) == ["a"] * 3
