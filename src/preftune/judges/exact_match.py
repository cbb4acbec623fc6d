"""Answers that are right or wrong: the final answer of a text is compared with the expected answer in the row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.errors import DatasetError
from preftune.judges.protocol import Judgement
from preftune.judges.text_matching import normalise
from preftune.types import Text

KEYS = ("answer", "expected", "key_fact")
"""Columns that may hold the expected answer, in the order in which they are looked for."""

_MARKED = (
    re.compile(r"####[ \t]*([^\n]+?)[ \t]*(?=\s*\Z)|####[ \t]*([-+]?[\d.,]*\d)[ \t]*(?=\n)"),
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"\b(?:final answer|the answer is|answer\s*:)[\s:*]*([^\n]+)", re.IGNORECASE),
)
"""How an answer is marked as the final one: as GSM8K has it (other lines that begin with #### are headings), as MATH
has it, in words. The last mark counts."""
_DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_NUMBER = re.compile(r"(?<![\w.])(?<!\d[-,/:^\u2044])[-+]?\d+(?:[.,]\d+)?(?![\w^])(?![.,/:\u2044]\d)")
"""A number that is not a part of a fraction, a time, a date, a range, a power or a list; with a point or a comma."""
_DENIED = re.compile(r"\b(?:not|rather than|instead of) [$\u20ac\u00a3]?(?=[-+]?\d)" + _NUMBER.pattern, re.IGNORECASE)
"""A number that an answer says it does not give: `7, not 9`."""
_UNITS = "$€£% "
_FRAME = " \t.,;:!?*_`'\"()[]"
_ARTICLE = re.compile(r"^(?:the|a|an) ")


def expected_answers(row: Mapping[str, Any]) -> list[str]:
    """The accepted answers of a row: what `answer`, `expected` or `key_fact` holds, a value or a list of alternatives.

    Raises: DatasetError without one.
    """
    value = next((row[key] for key in KEYS if row.get(key) not in (None, "", [])), None)
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    texts = [str(item) for item in values if item is not None and not isinstance(item, Mapping)]
    if not texts or not all(map(_plain, texts)):
        raise DatasetError(
            f"A row has no expected answer (columns: {', '.join(map(repr, row)) or 'none'}). The judge exact needs a "
            "column answer, expected or key_fact, with the answer or a list of accepted ones; add it, or choose "
            "another judge."
        )
    return [final_answer(text) for text in texts]


def final_answer(text: str) -> str:
    """What a text gives as its final answer: what is marked as such, or the whole text."""
    for mark in _MARKED:
        found = mark.findall(text)
        if found:
            last = found[-1]
            return _DRESS.sub(r"\1", last if isinstance(last, str) else "".join(last))
    return text


def is_exact(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the final answer, or the last line of it, is an expected one: equal after `normalise`, without article,
    quotes and full stop. Where a number is expected, the last number of the final answer counts too, one
    after "not", "rather than" or "instead of" left out."""
    final = final_answer(answer)
    lines = [line for line in final.splitlines() if line.strip()] or [""]
    candidates = {_plain(final), _plain(lines[-1])}
    for expected in expected_answers(row):
        if _plain(expected) in candidates:
            return True
        number = _as_number(expected)
        if number is not None and number == _last_number(final):
            return True
    return False


class ExactJudge:
    """Right wins over wrong; two right answers or two wrong ones are a tie. For prompts with an answer key."""

    name = "exact"
    symmetric = True
    needs = staticmethod(expected_answers)
    """Raises what is missing in a row, before answers are paid for."""

    def __call__(self, prompt: Text, answer_a: str, answer_b: str, row: Mapping[str, Any]) -> Judgement:
        right_a, right_b = is_exact(answer_a, row), is_exact(answer_b, row)
        if right_a == right_b:
            return "tie"
        return "a" if right_a else "b"

    def is_right(self, answer: str, row: Mapping[str, Any]) -> bool:
        """For the share of right answers of each model."""
        return is_exact(answer, row)


def _plain(text: str) -> str:
    return _ARTICLE.sub("", normalise(text).strip(_FRAME)).strip(_FRAME)


def _as_number(text: str) -> float | None:
    stripped = normalise(text).strip(_FRAME.replace(".", "") + _UNITS).rstrip(".")
    return _value(stripped) if _NUMBER.fullmatch(stripped) else None


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(_DENIED.sub(" ", normalise(text)))
    return _value(found[-1]) if found else None


def _value(number: str) -> float:
    return float(number.replace(",", "."))
