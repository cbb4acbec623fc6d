"""The rules that ship with preftune. A judge is a callable; other rules follow the same protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from preftune.errors import RequestError
from preftune.judges.protocol import Judgement
from preftune.judges.text_matching import count_words, is_correct, key_facts
from preftune.types import Text


def shorter_answer(answer_a: str, answer_b: str) -> Judgement:
    """The clearly shorter answer: by at least 2 words and at least 10% of the longer one; otherwise a tie."""
    words_a, words_b = count_words(answer_a), count_words(answer_b)
    distance = abs(words_a - words_b)
    if distance < 2 or distance < 0.1 * max(words_a, words_b):
        return "tie"
    return "a" if words_a < words_b else "b"


class KeyFactJudge:
    """Correct first, then brief: the rule of the demo.

    An answer is correct if it contains one of the row's `key_fact` alternatives as whole words. If only one answer is
    correct it wins. If both are, the clearly shorter one wins (`shorter_answer`), else it is a tie. If neither is, it
    is a tie: being short is no merit of a wrong answer. The rule reads words, not meaning: "it is not Paris" contains
    "Paris". The prompt, repeated word for word, is no part of an answer.
    """

    name = "key-fact"
    symmetric = True
    needs = staticmethod(key_facts)
    """Raises what is missing in a row, before answers are paid for."""

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        correct_a, correct_b = is_correct(answer_a, row, prompt), is_correct(answer_b, row, prompt)
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
            raise RequestError(f"LengthJudge(prefer={prefer!r}): prefer must be 'shorter' or 'longer'.")
        self.prefer = prefer
        self.name = f"{prefer} wins"

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        if self.prefer == "shorter":
            return shorter_answer(answer_a, answer_b)
        return shorter_answer(answer_b, answer_a)  # "a" when b is the shorter one: a is longer and wins
