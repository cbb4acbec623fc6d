"""Rewards that ship and need no model: the right answer, the key fact, the length, the format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from preftune.errors import RequestError
from preftune.judges.exact_match import is_exact
from preftune.judges.text_matching import count_words, is_correct
from preftune.types import Text

Rate = Callable[[str, Mapping[str, Any], Text], float]


class RuleReward(NamedTuple):
    """A `Scorer` of a rule."""

    name: str
    rate: Rate
    cache_key: str | None = None

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float:
        return self.rate(answer, row, prompt)


def rule_reward(spec: str) -> RuleReward | None:
    """The reward that a name of the table below means; None for another name.

        exact          1 where the final answer is the row's `answer`, `expected` or `key_fact`, else 0
        key-fact       1 where the answer contains the row's `key_fact`, else 0
        length:WORDS   0 up to that many words, falling to -1 at twice as many
        format:REGEX   1 where the whole answer matches (`.` matches line ends as well), else 0

    Raises: RequestError for another number or expression than one that can be read.
    """
    kind, _, value = spec.partition(":")
    if spec == "exact":
        return RuleReward(spec, lambda answer, row, _: float(is_exact(answer, row)))
    if spec == "key-fact":
        return RuleReward(spec, lambda answer, row, prompt: float(is_correct(answer, row, prompt)))
    if kind == "length" and value:
        return RuleReward(spec, _up_to(value))
    if kind == "format" and value:
        return RuleReward(spec, _matching(value))
    return None


def _up_to(value: str) -> Rate:
    if not value.isdecimal() or int(value) < 1:
        raise RequestError(f"length:{value}: give a number of words, such as length:100.")
    most = int(value)
    return lambda answer, *_: -min(1.0, max(0.0, count_words(answer) / most - 1))


def _matching(value: str) -> Rate:
    try:
        pattern = re.compile(value, re.DOTALL)
    except re.error as error:
        raise RequestError(f"format:{value} is not a regular expression ({error}). Correct it.") from error
    return lambda answer, *_: float(pattern.fullmatch(answer.strip()) is not None)
