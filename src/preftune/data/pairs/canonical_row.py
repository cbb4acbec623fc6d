"""A pair as a row of preftune's own format, which is read as the same pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from preftune.data.formats.apply import GOLD, RATINGS
from preftune.data.formats.to_pair import to_pair
from preftune.errors import DatasetError
from preftune.types import PreferencePair, Text

CANONICAL_ROW = (
    "prompt",
    "chosen",
    "rejected",
    "weight",
    "margin",
    "agreement",
    "strength",
    *RATINGS,
    GOLD,
    "id",
    "source",
    "tools",
    "chat_template_kwargs",
)
"""The columns of the canonical form, in their order; all but the first three exist only if a pair has them."""


def canonical_row(
    pair: PreferencePair,
    strength: float | None = None,
    ratings: tuple[float, float] | None = None,
    gold: Any = None,
) -> dict[str, Any]:
    """The row of a pair; values that the pair does not have are None.

    Args:
        gold: the gold answer as it was read; `gold_of` reads it with the pair.
    """
    return {
        "prompt": _role_first(pair.prompt),
        "chosen": _role_first(pair.chosen),
        "rejected": _role_first(pair.rejected),
        "weight": None if pair.weight == 1.0 else pair.weight,
        "margin": None if pair.margin == 0.0 else pair.margin,
        "agreement": pair.agreement,
        "strength": strength,
        **(dict(zip(RATINGS, ratings, strict=True)) if ratings else {}),
        **({} if gold is None else {GOLD: gold}),
        "id": pair.id,
        "source": pair.source,
        "tools": None if pair.tools is None else list(pair.tools),
        "chat_template_kwargs": dict(pair.chat_template_kwargs) or None,
    }


def with_json_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with texts only, for tables with one type per column: turns, tools and keyword arguments as JSON."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in row.items()
    }


def reads_back(row: Mapping[str, Any], pair: PreferencePair) -> bool:
    """Whether a row is read as the pair that it was made from."""
    values = {name: value for name, value in row.items() if value is not None and name not in ("strength", *RATINGS)}
    try:
        found = to_pair(values, name="", row=pair.row, prompts=True)
    except DatasetError:
        return False
    return found == replace(pair, tools=None if pair.tools is None else list(pair.tools))


def _role_first(side: Text) -> Text:
    """Turns with role and content as the first keys, by which JSON texts of turns are recognised."""
    if isinstance(side, str):
        return side
    return [{"role": turn["role"], "content": turn["content"], **turn} for turn in side]
