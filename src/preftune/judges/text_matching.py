"""Whether an answer contains an expected fact, as words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from preftune.errors import DatasetError
from preftune.types import Text

_THOUSANDS = re.compile("(?<=\\d)[,'\u066c\u2019\u00a0\u202f\u2009](?=\\d{3}(?!\\d))")


def count_words(text: str) -> int:
    """Words as separated by whitespace."""
    return len(text.split())


def normalise(text: str) -> str:
    """One spelling for what reads the same: NFKC, case, typographic quotes and dashes, spaces, marks that are not seen
    (zero-width, of direction), and no separators of thousands: `1,000`, `1'000` and `1\u202f000` as `1000`."""
    text = _THOUSANDS.sub("", text).replace("\u066b", ".")
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    text = re.sub("[\u2018\u2019\u02bc`\u00b4]", "'", text)
    text = re.sub("[\u201c\u201d\u00ab\u00bb]", '"', text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
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
        before += r"(?<!\d[.,])(?<!\W-)"
    if wanted[-1].isdigit():
        after += r"(?![.,]\d)"
    return re.search(before + re.escape(wanted) + after, " " + normalise(answer)) is not None


def key_facts(row: Mapping[str, Any]) -> list[str]:
    """The accepted alternatives of a row's `key_fact`: a string or a list of strings, never empty.

    Raises: DatasetError without one, naming what the row holds.
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


def is_correct(answer: str, row: Mapping[str, Any], prompt: Text | None = None) -> bool:
    """Whether the answer contains any accepted alternative of the row's `key_fact`.

    Args:
        prompt: by default the row's. Its last turn, repeated word for word, is no part of the answer. (A fact that
            stands in the prompt may be the right answer all the same: "Paris or Rome?")
    """
    asked: Any = (row.get("prompt") if prompt is None else prompt) or ""
    asked = normalise(asked if isinstance(asked, str) else str(asked[-1].get("content", "")))
    said = normalise(answer)
    if len(asked.split()) > 1:
        said = said.replace(asked, " ")
    return any(contains_fact(said, fact) for fact in key_facts(row))
