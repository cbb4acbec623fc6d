"""The user's Python functions as judges and scorers: checked by signature.

    def prefer_polite(prompt, answer_a, answer_b, row):  # a judge: "a", "b", "tie", or the probability of a (0.8)
    def politeness(prompt, answer, row):                 # a scorer: a number, or None

`row` may be left out of either.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.judges.protocol import Judge, Scorer, judge_name
from preftune.user_functions import ASYNC, is_async

_ROWS = frozenset(
    "row record example sample item entry fields columns meta metadata extra extras info context data kwargs".split()
)
"""What people call the row."""
_PAIRS = tuple(
    frozenset(words.split("-"))
    for words in "a-b x-y 1-2 first-second left-right one-two one-other base-aligned baseline-candidate old-new "
    "before-after chosen-rejected".split()
)
"""What people call two answers, or what they end in."""
_PROMPTS = frozenset("prompt prompts question query instruction conversation".split())
"""What people call the prompt, which comes first."""
_FORMS = (
    "A judge is rule(prompt, answer_a, answer_b, row) and returns 'a', 'b', 'tie' or the probability that a is better "
    "(0.8); a scorer is rule(prompt, answer, row) and returns a number. Name the arguments like that, or annotate what "
    "it returns (-> str, -> float)."
)


class Rule(NamedTuple):
    """A function of the user, callable with all arguments of its protocol."""

    call: Any
    scores: bool
    """It rates one answer; otherwise it compares two."""


def adapted(rule: Judge | Scorer | Any) -> Rule:
    """What a rule is, by its arguments' number and names and by the annotation of what it returns.

    Raises: RequestError for a signature that fits neither protocol, or both.
    """
    if any(is_async(one) for one in (rule, getattr(rule, "judge_all", None), getattr(rule, "score_all", None))):
        raise RequestError(f"Rule {judge_name(rule)!r} is {ASYNC}")
    known = getattr(rule, "scores_one", None)
    if isinstance(known, bool):
        return Rule(rule, known)
    if hasattr(rule, "judge_all") or hasattr(rule, "score_all"):
        return Rule(rule, scores=not hasattr(rule, "judge_all"))
    try:
        parameters = list(inspect.signature(rule).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if not required <= 4 or not len(positional) >= 2:
        raise RequestError(f"Rule {judge_name(rule)!r} takes {counted(required, 'argument')}. {_FORMS}")
    names = [p.name for p in positional[:4]]
    asked = next((place for place, name in enumerate(names) if name.lower() in _PROMPTS), 0)
    if asked:
        raise RequestError(
            f"Rule {judge_name(rule)!r} takes ({', '.join(names)}), but the prompt must come first: arguments are "
            f"passed by position. {_FORMS}"
        )
    by_names, by_return = _scores_by_names(names, required), _scores_by_return(rule)
    if by_names is None and by_return is None:
        raise RequestError(
            f"Rule {judge_name(rule)!r} takes ({', '.join(names)}): it is unclear whether it is a judge or a scorer. "
            f"{_FORMS}"
        )
    if by_names and by_return is False:  # a judge may return a number: a probability
        raise RequestError(
            f"Rule {judge_name(rule)!r} has the arguments of a scorer ({', '.join(names)}) and returns what a judge "
            f"returns. {_FORMS}"
        )
    scores = by_names if by_names is not None else bool(by_return)
    takes = 3 if scores else 4
    return Rule(rule if len(names) >= takes else WithoutRow(rule, scores), scores)


def _scores_by_names(names: Sequence[str], required: int) -> bool | None:
    """Whether arguments of these names rate one answer (True) or compare two; None where they do not tell."""
    second, third = (names[1].lower(), names[2].lower()) if len(names) > 2 else (names[1].lower(), "")
    if third and _are_two_answers(second, third):
        return False
    if third in _ROWS or (len(names) == 2 and not _are_two_answers(names[0].lower(), second)):
        return True
    return False if required == 4 else None


def _are_two_answers(one: str, other: str) -> bool:
    parts = [re.split(r"_(?=[^_]+$)|(?<=[a-z])(?=\d+$)", name) for name in (one, other)]
    if len(parts[0]) == len(parts[1]) == 2 and parts[0][0] != parts[1][0]:
        return False
    return frozenset((parts[0][-1], parts[1][-1])) in _PAIRS


def _scores_by_return(rule: Any) -> bool | None:
    """Whether the annotation of what a rule returns is a number (True) or a text; None without an annotation."""
    function = rule if inspect.isroutine(rule) else type(rule).__call__
    try:
        returned = get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError, SyntaxError):  # names that only a type checker knows
        return None
    kinds = {_is_number(part) for part in _alternatives(returned)} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [part for inner in get_args(hint) for part in _alternatives(inner)]
    return [type(value) for value in get_args(hint)] if get_origin(hint) is Literal else [hint]


def _is_number(hint: Any) -> bool | None:
    if not isinstance(hint, type) or hint is type(None):
        return None
    return True if issubclass(hint, int | float) else False if issubclass(hint, str) else None


class WithoutRow:
    """A rule that does not read the row, in a protocol that gives it."""

    def __init__(self, rule: Any, scores_one: bool) -> None:
        self._rule, self.scores_one = rule, scores_one
        self.name = judge_name(rule)

    def __call__(self, *content: Any) -> Any:
        return self._rule(*content[:-1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)
