"""The protocols of judges and scorers, how they are called, and their valid results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

from preftune.errors import PreftuneError, RequestError
from preftune.types import Text

Judgement: TypeAlias = Literal["a", "b", "tie"]
"""Which of two answers is better."""


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

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement: ...


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


def checked(judgement: object, judge: Judge) -> Judgement:
    """The judgement itself, or RequestError when a judge answers anything but "a", "b" or "tie"."""
    if isinstance(judgement, str) and judgement in get_args(Judgement):
        return cast(Judgement, judgement)
    number = isinstance(judgement, int | float)
    scorer = " A function that returns a number is a scorer: it takes (prompt, answer, row)." if number else ""
    raise RequestError(
        f'Judge {judge_name(judge)!r} answered {judgement!r}; a judge answers "a", "b" or "tie".{scorer}'
    )


def swapped_verdict(verdict: Judgement | None) -> Judgement | None:
    """What the same judge says of the answers in the other order, if it is symmetric."""
    swapped: dict[Judgement | None, Judgement | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
    return swapped[verdict]


_LARGEST = 3.4028234e38
"""Of a float32, in which rewards are computed."""


def finite_score(score: Any, scorer: Scorer) -> float | None:
    """The score itself, or RequestError for anything but a finite number or None."""
    if score is None:
        return None
    plain = _plain(score)
    if isinstance(plain, bool | int | float) and abs(plain) <= _LARGEST:
        return float(plain)
    compares = " A function that says which of two answers is better takes (prompt, answer_a, answer_b, row)."
    raise RequestError(
        f"Scorer {judge_name(scorer)!r} answered {score!r}; a scorer answers a finite number, or None for an answer "
        f"that it cannot rate.{compares if isinstance(score, str) else ''}"
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
) -> list[Judgement | None]:
    """Any judge's verdict on every question; None where a judge that is asked in words gave none that could be read.

    Args:
        again: ask once more what could not be read in an earlier run.
        progress: called with questions done and questions in all.
    Raises: RequestError when a rule answers anything but "a", "b" or "tie"; whatever the judge raises.
    """
    many = getattr(judge, "judge_all", None)
    if many is not None:
        return list(many(questions, again=again, progress=progress))
    verdicts: list[Judgement | None] = []
    for done, question in enumerate(questions, start=1):
        with naming_failures(judge, question.prompt, question.row):
            verdict = judge(*question)
        verdicts.append(checked(verdict, judge))
        if progress is not None:
            progress(done, len(questions))
    return verdicts
