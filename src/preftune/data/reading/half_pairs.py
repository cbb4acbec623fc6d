"""Halves of surrogate pairs in text: JSON can escape them ("\\ud83d"), but they are not characters (an emoji that was
cut in two). No file, tokenizer or terminal accepts them, so they are read as U+FFFD, and counted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from preftune.amounts import counted
from preftune.log import warn

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def may_hold(text: str) -> bool:
    """Whether a JSON text escapes a surrogate."""
    return _ESCAPED.search(text) is not None


class HalfPairs:
    """Replaces halves of surrogate pairs, and warns once with the number of texts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts = 0
        self.first = ""

    def of_row(self, row: Any, where: str) -> Any:
        """A row with its halves replaced, except in names of columns, which are refused."""
        if not isinstance(row, dict):
            return row
        return {key: self.replaced(value, f"{where}, column {key!a}") for key, value in row.items()}

    def replaced(self, value: Any, where: str) -> Any:
        """A value of any kind, without halves."""
        if isinstance(value, str):
            if _HALF.search(value) is None:
                return value
            self.texts += 1
            self.first = self.first or where
            return _HALF.sub("\ufffd", value)
        if isinstance(value, dict):
            return {self.replaced(key, where): self.replaced(inner, where) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(inner, where) for inner in value]
        return value

    def warn_once(self) -> None:
        """Warns once about replaced halves, although the same data are read more than once."""
        if self.texts:
            _warn_once(self.name, self.texts, self.first)


@lru_cache(maxsize=1000)
def _warn_once(name: str, texts: int, first: str) -> None:
    warn(
        f"{counted(texts, 'text')} of {name} {'holds' if texts == 1 else 'hold'} half of a surrogate pair, which is "
        f"not a character (first: {first}). It is read as U+FFFD. Correct or remove such rows."
    )
