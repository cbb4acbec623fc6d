"""The dataset that ships with preftune: short questions, a direct correct answer, and what small chat models do.

Importable without torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal, TypeAlias, TypeVar

Item = TypeVar("Item")
Row: TypeAlias = dict[str, Any]
"""`id, topic, prompt, chosen, rejected, key_fact` (accepted alternatives), `flaw` (of the rejected answer), `split`."""


def demo_rows(split: Literal["train", "test"] | None = None) -> list[Row]:
    """The rows of one split, or all of them, in their order."""
    text = files("preftune.demo").joinpath("pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    return [row for row in rows if split is None or row["split"] == split]


def spread(rows: Sequence[Item], count: int | None) -> list[Item]:
    """A number of rows, spread evenly over all of them and so over the topics; all rows for None."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def training_pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as conversational preference pairs, which is how the chat model will be asked."""
    return [
        {
            "prompt": question(row),
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


def demonstrations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The chosen answers as conversations for SFT."""
    return [{"messages": [*question(row), {"role": "assistant", "content": row["chosen"]}]} for row in rows]


def question(row: Row) -> list[dict[str, str]]:
    """The prompt of a row as a conversation of one message."""
    return [{"role": "user", "content": row["prompt"]}]
