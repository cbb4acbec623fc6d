"""Prompts written for preftune, for an evaluation without own prompts: ordinary ones, edge cases, and out-of-domain
ones.

Importing it needs no torch.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from preftune.generation.prompts import Prompt, Prompts
from preftune.storage.jsonl import digest
from preftune.types import Text

_NAME = "preftune's own prompts"


def own_prompts(limit: int | None = None, *, as_chat: bool = True) -> Prompts:
    """The prompts with their `category` (three of them) and `topic`.

    Args:
        limit: number of prompts, spread evenly over all and so over the categories.
        as_chat: make each text a user's turn; for models without a chat template it stays text.
    """
    text = files("preftune.generation").joinpath("own_prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    count = len(rows) if limit is None else min(limit, len(rows))
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    return Prompts([_prompt(row, as_chat) for row in chosen], _NAME, 0)


def _prompt(row: dict[str, Any], as_chat: bool) -> Prompt:
    prompt: Text = row["prompt"]
    if isinstance(prompt, str) and as_chat:
        prompt = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, str) and not as_chat:
        prompt = "\n\n".join(str(turn["content"]) for turn in prompt)
    kept = {"category": row["category"], "topic": row["topic"]}
    return Prompt(row["id"], prompt, digest([prompt, {}]), {}, kept)
