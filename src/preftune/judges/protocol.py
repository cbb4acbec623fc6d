"""The protocols of judges and scorers, how they are called, and their valid results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

from preftune.amounts import shown
from preftune.errors import PreftuneError, RequestError
from preftune.types import Text

Judgement: TypeAlias = Literal["a", "b", "tie"]
"""Which of two answers is better."""

Graded: TypeAlias = Judgement | float
"""The same, or the share of the comparison that answer a wins, 0.0 to 1.0: the judge's probability that a is better, or
its share of several votes."""

Item: TypeAlias = tuple[Text, str, Mapping[str, Any]]
"""A prompt, an answer to it, and the row that belongs to the prompt."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with what is done and what there is."""


class Judge(Protocol):
    """Compares two answers to one prompt.

    Three attributes are optional. `symmetric = True` promises that swapping the answers swaps the judgement, so one
    order is asked instead of two. `cache_key: str` names the judge and its version; judgements under the same key are
    reused from disk (without it they are made anew, which costs a rule nothing). A method
    `judge_all(questions, again=..., progress=...)` judges many at once; see `judge_all`.
    """

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Graded: ...


class Scorer(Protocol):
    """Rates one answer to a prompt: higher is better. None for an answer that it cannot rate.

    Optional attributes: `cache_key` as for a `Judge`, and a method `score_all(items, progress=...)` that rates many
    (prompt, answer, row) at once and calls `progress` with answers done and answers in all.
    """

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float | None: ...


class Question(NamedTuple):
    """Two answers to one prompt, in the order in which the judge sees them."""

    prompt: Text
    answer_a: str
    answer_b: str
    row: Mapping[str, Any] = {}
    """What else belongs to the prompt, for rules that look at it (`key_fact`)."""

    @property
    def swapped(self) -> Question:
        return self._replace(answer_a=self.answer_b, answer_b=self.answer_a)


def judge_name(judge: Judge | Scorer) -> str:
    """The name that goes into `eval/summary.json`."""
    given = getattr(judge, "name", None) or getattr(judge, "__name__", None)
    return str(given) if given else type(judge).__name__


def checked(judgement: object, judge: Judge) -> Graded:
    """The judgement itself, or RequestError when a judge answers anything but "a", "b", "tie" or a share.

    An integer is refused: 0 and 1 are a place in other libraries, and a share here.
    """
    if isinstance(judgement, str) and judgement in get_args(Judgement):
        return cast(Judgement, judgement)
    plain = _plain(judgement)
    if isinstance(plain, float) and is_graded(plain):
        return plain
    more = ""
    if isinstance(plain, bool):
        more = ' True and False do not name an answer: return "a" if a is better, "b" if b is.'
    elif isinstance(plain, int | float):
        more = " A function that rates one answer is a scorer: it takes (prompt, answer, row)."
    raise RequestError(
        f'Judge {judge_name(judge)!r} answered {shown(judgement)}; a judge answers "a", "b" or "tie", or the '
        f"probability that answer a is better as a number from 0.0 to 1.0 (of type float).{more}"
    )


def is_graded(value: object) -> bool:
    """Whether a value is a judgement, in words or as a share."""
    if isinstance(value, float):
        return math.isfinite(value) and 0.0 <= value <= 1.0
    return isinstance(value, str) and value in get_args(Judgement)


def share_of_a(judgement: Graded) -> float:
    """The share of the comparison that answer a wins: 1, 0.5 or 0 of a judgement in words."""
    return judgement if isinstance(judgement, float) else {"a": 1.0, "tie": 0.5, "b": 0.0}[judgement]


def decided(judgement: Graded | None) -> Judgement | None:
    """The judgement in words: the answer that has more than half."""
    if judgement is None or isinstance(judgement, str):
        return judgement
    return "tie" if judgement == 0.5 else "a" if judgement > 0.5 else "b"


def swapped_verdict(verdict: Graded | None) -> Graded | None:
    """What the same judge says of the answers in the other order, if it is symmetric."""
    if isinstance(verdict, float):
        return 1.0 - verdict
    swapped: dict[Judgement | None, Judgement | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
    return swapped[verdict]


def both_orders(there: Graded, back: Graded) -> float:
    """The share of the comparison that the first answer wins, from the judgement in each order.

    Two judgements in words must agree, or it is a tie. Shares are averaged, which removes a preference for a place.

    Args:
        there: the first answer as answer a.
        back: the first answer as answer b.
    """
    first, second = share_of_a(there), 1.0 - share_of_a(back)
    if isinstance(there, str) and isinstance(back, str):
        return first if first == second else 0.5
    return (first + second) / 2


LARGEST_SCORE = 3.4028234e38
"""Of a float32, in which rewards are computed."""


def finite_score(score: Any, scorer: Scorer) -> float | None:
    """The score itself, or RequestError for anything but a finite number or None."""
    if score is None:
        return None
    plain = _plain(score)
    if isinstance(plain, bool | int | float) and abs(plain) <= LARGEST_SCORE:
        return float(plain)
    compares = " A function that says which of two answers is better takes (prompt, answer_a, answer_b, row)."
    raise RequestError(
        f"Scorer {judge_name(scorer)!r} answered {shown(score)}; a scorer answers a finite number, or None for an "
        f"answer that it cannot rate.{compares if isinstance(score, str) else ''}"
    )


def _plain(score: Any) -> Any:
    """A number of NumPy, or a tensor of one element, as a number of Python."""
    try:
        return score.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return score


@contextmanager
def naming_failures(judge: Judge | Scorer, prompt: Text, row: Mapping[str, Any]) -> Iterator[None]:
    """A rule that fails is named together with the prompt. Raises: RequestError."""
    try:
        yield
    except PreftuneError:
        raise
    except (Exception, SystemExit) as error:  # a rule is a program of the user; one that exits would look like success
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise  # a signal that stops the command
        which = f"prompt {row['id']!r}" if row.get("id") is not None else f"the prompt {_beginning(prompt)!r}"
        raise RequestError(
            f"Judge {judge_name(judge)!r} failed on {which}: {type(error).__name__}: {error}. Correct the rule; "
            "--traceback shows where it happened."
        ) from error


def _beginning(prompt: Text) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") if prompt else "")
    return text if len(text) <= 60 else text[:60] + "..."


def score_all(scorer: Scorer, items: Sequence[Item], *, progress: Progress | None = None) -> list[float | None]:
    """Any scorer's score of every answer; None for one that it cannot rate.

    Args:
        items: prompt, answer and row of each.
        progress: called with answers done and answers in all.
    Raises: RequestError for a score that is not a finite number, or a rule that fails.
    """
    many = getattr(scorer, "score_all", None)
    if many is not None:
        found = many(list(items)) if progress is None else many(list(items), progress=progress)
        return [finite_score(score, scorer) for score in found]
    scores: list[float | None] = []
    for done, item in enumerate(items, start=1):
        with naming_failures(scorer, item[0], item[2]):
            score = scorer(*item)
        scores.append(finite_score(score, scorer))
        if progress is not None:
            progress(done, len(items))
    return scores


def judge_all(
    judge: Judge, questions: Sequence[Question], *, again: bool = False, progress: Progress | None = None
) -> list[Graded | None]:
    """Any judge's verdict on every question; None where a judge that is asked in words gave none that could be read.

    Args:
        again: ask once more what could not be read in an earlier run.
        progress: called with questions done and questions in all.
    Raises: RequestError when a rule answers anything else; whatever the judge raises.
    """
    many = getattr(judge, "judge_all", None)
    if many is not None:
        found = many(questions, again=again, progress=progress)
        return [None if verdict is None else checked(verdict, judge) for verdict in found]
    verdicts: list[Graded | None] = []
    for done, question in enumerate(questions, start=1):
        with naming_failures(judge, question.prompt, question.row):
            verdict = judge(*question)
        verdicts.append(checked(verdict, judge))
        if progress is not None:
            progress(done, len(questions))
    return verdicts
