"""Who says which of two answers is better. A judge is a callable; rules ship here, others follow the same protocol."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

from preftune.errors import DatasetError, PreftuneError, RequestError
from preftune.types import Text

if TYPE_CHECKING:
    from preftune.evaluation.verdicts import VerdictCache

Judgement: TypeAlias = Literal["a", "b", "tie"]
"""Which of two answers is better."""


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


def count_words(text: str) -> int:
    """Words as separated by whitespace."""
    return len(text.split())


def shorter_answer(answer_a: str, answer_b: str) -> Judgement:
    """The clearly shorter answer: by at least 2 words and at least 10% of the longer one; otherwise a tie."""
    words_a, words_b = count_words(answer_a), count_words(answer_b)
    distance = abs(words_a - words_b)
    if distance < 2 or distance < 0.1 * max(words_a, words_b):
        return "tie"
    return "a" if words_a < words_b else "b"


def normalise(text: str) -> str:
    """One spelling for what reads the same: NFKC, case, typographic quotes and dashes, spaces, `1,000` as `1000`."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub("[\u2018\u2019\u02bc`\u00b4]", "'", text)
    text = re.sub("[\u201c\u201d\u00ab\u00bb]", '"', text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return " ".join(text.split())


def contains_fact(answer: str, fact: str) -> bool:
    """Whether `fact` occurs in `answer` as whole words, after `normalise`.

    A number is not found inside a longer one: `3` is neither in `13`, `3.5`, `0.3` nor in `-3`.
    """
    wanted = normalise(fact)
    if not wanted:
        return False
    before, after = r"(?<!\w)", r"(?!\w)"
    if wanted[0].isdigit():
        before += r"(?<!\d[.,])(?<![\s(]-)"
    if wanted[-1].isdigit():
        after += r"(?![.,]\d)"
    return re.search(before + re.escape(wanted) + after, " " + normalise(answer)) is not None


def key_facts(row: Mapping[str, Any]) -> list[str]:
    """The accepted alternatives of a row's `key_fact`: a string or a list of strings, never empty.

    Raises: DatasetError when there is none, with what the row does hold.
    """
    value = row.get("key_fact")
    facts = [value] if isinstance(value, str) else value
    if (
        not isinstance(facts, Sequence)
        or not facts
        or not all(isinstance(fact, str) and normalise(fact) for fact in facts)
    ):
        raise DatasetError(
            f"A row has no usable 'key_fact' (found {value!r}; columns: {', '.join(map(repr, row)) or 'none'}). "
            "The key-fact judge needs the words that a correct answer contains, as a string or a list of alternatives; "
            "add the column, or choose another judge."
        )
    return list(facts)


def is_correct(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the answer contains any accepted alternative of the row's `key_fact`."""
    return any(contains_fact(answer, fact) for fact in key_facts(row))


class KeyFactJudge:
    """Correct first, then brief: the rule of the demo.

    An answer is correct if it contains one of the row's `key_fact` alternatives as whole words. If only one answer is
    correct it wins. If both are, the clearly shorter one wins (`shorter_answer`), else it is a tie. If neither is, it
    is a tie: being short is no merit of a wrong answer. The rule reads words, not meaning: "it is not Paris" contains
    "Paris".
    """

    name = "key-fact"
    symmetric = True
    needs = staticmethod(key_facts)
    """Raises what is missing in a row, before answers are paid for."""

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        correct_a, correct_b = is_correct(answer_a, row), is_correct(answer_b, row)
        if correct_a != correct_b:
            return "a" if correct_a else "b"
        return shorter_answer(answer_a, answer_b) if correct_a else "tie"


class LengthJudge:
    """The baseline that reads nothing: the clearly shorter (or longer) answer wins.

    A win rate that this judge reaches as well says nothing about quality.
    """

    symmetric = True

    def __init__(self, *, prefer: Literal["shorter", "longer"] = "shorter") -> None:
        if prefer not in ("shorter", "longer"):
            raise RequestError(f"LengthJudge(prefer={prefer!r}): prefer is 'shorter' or 'longer'.")
        self.prefer = prefer
        self.name = f"{prefer} wins"

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        if self.prefer == "shorter":
            return shorter_answer(answer_a, answer_b)
        return shorter_answer(answer_b, answer_a)  # "a" when b is the shorter one: a is longer and wins


length_only_judge = LengthJudge()
"""The shorter answer wins, whatever it says."""


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


def finite_score(score: Any, scorer: Scorer) -> float | None:
    """The score itself, or RequestError for anything but a finite number or None."""
    if score is None:
        return None
    plain = _plain(score)
    if isinstance(plain, bool | int | float) and math.isfinite(plain):
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
    except Exception as error:  # a rule is a program of the user
        which = f"prompt {row['id']!r}" if row.get("id") is not None else f"the prompt {_beginning(prompt)!r}"
        raise RequestError(
            f"Judge {judge_name(judge)!r} failed on {which}: {type(error).__name__}: {error}. Correct the rule; "
            "--traceback shows where it happened."
        ) from error


def _beginning(prompt: Text) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") if prompt else "")
    return text if len(text) <= 60 else text[:60] + "..."


def judge_all(
    judge: Judge,
    questions: Sequence[Question],
    *,
    again: bool = False,
    progress: Callable[[int, int], None] | None = None,
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


class RememberedRule:
    """A rule with a `cache_key`, that compares or that scores, and is never called twice with the same."""

    def __init__(self, rule: Any, cache: VerdictCache) -> None:
        from preftune.evaluation.user_rules import adapted

        self._rule, self._cache = rule, cache
        self.name, self.cache_key = judge_name(rule), rule.cache_key
        self.symmetric = bool(getattr(rule, "symmetric", False))
        self.scores_one = adapted(rule).scores

    def __call__(self, *content: Any) -> Any:
        from preftune.evaluation.verdicts import verdict_key

        key = verdict_key("rule", self.cache_key, *content)
        known = self._cache.get([key])
        if key not in known:
            known[key] = finite_score(self._rule(*content), self._rule) if self.scores_one else self._rule(*content)
            self._cache.put(known, judge=self.name)
        return known[key]


def load_judge(spec: str) -> Judge:
    """A rule by name: `key-fact`, `exact`, `shorter`, `longer`, or `rule:module:function` for a function of your own.

    The module is looked for in the current folder too; a class is called without arguments to make the judge.

    Raises: RequestError naming what could not be found.
    """
    if spec == "key-fact":
        return KeyFactJudge()
    if spec == "exact":
        from preftune.evaluation.exact import ExactJudge

        return ExactJudge()
    if spec in ("shorter", "longer"):
        return LengthJudge(prefer="shorter" if spec == "shorter" else "longer")
    kind, _, rest = spec.partition(":")
    module_name, _, attribute = rest.partition(":")
    if kind != "rule" or not module_name or not attribute:
        raise RequestError(
            f"Unknown judge {spec!r}. Use key-fact, exact, shorter, longer, or rule:module:function, for example "
            "rule:my_rules:prefer_polite for the function prefer_polite in my_rules.py."
        )
    from preftune.evaluation.user_rules import load_rule

    return cast(Judge, load_rule(module_name, attribute, spec))
