"""One preference dataset in three parts without a common prompt: for training, for choosing settings, and for the final
comparison.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.data.pairs.canonical_row import canonical_row
from preftune.data.pairs.dataset import PairDataset
from preftune.errors import DatasetError
from preftune.generation.prompts import Prompts, prompt_key
from preftune.storage.jsonl import digest, write_lines
from preftune.types import PreferencePair

Row = dict[str, Any]
"""A prompt for `evaluate_pairwise`: `id`, `prompt`, `category` and the columns that the judge reads."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the data."""

    train: Sequence[PreferencePair]
    tune: Sequence[Row]
    test: Sequence[Row]
    held_out: Sequence[PreferencePair]
    """Pairs that are not trained on, because their prompt is in `tune` or `test`."""

    @property
    def fingerprint(self) -> str:
        """A digest of the training pairs."""
        return digest([canonical_row(pair, ratings=pair.ratings) for pair in self.train])


def split(
    pairs: PairDataset, prompts: Prompts, *, tune: int | None, test: int | None, separate: Prompts | None, seed: int
) -> Parts:
    """Divide a dataset into the parts, at random.

    Args:
        prompts: the prompts of the same rows as `pairs`.
        tune, test: number of prompts in these parts; by default a tenth (at most 64) and a fifth (at most 256).
        separate: prompts of another source for the `test` part; they are removed from the other parts.
        seed: the seed of the draw.
    Raises:
        DatasetError: a part would have fewer than 2 prompts; or only one of `separate` and `prompts` holds chat
            messages, so that common prompts cannot be found and the policies would be prompted in another format.
    """
    if separate is not None and _are_chat(separate) != _are_chat(prompts):
        shapes = ("chat messages", "plain text")
        here, there = shapes if _are_chat(separate) else reversed(shapes)
        raise DatasetError(
            f"{separate.name} holds prompts of {here}, and {prompts.name} of {there}: they would be rendered "
            "differently from the training data. Give --as_chat, or prompts of the same shape."
        )
    order = list(prompts.prompts)
    random.Random(seed).shuffle(order)
    if separate is None:
        count = min(256, len(order) // 5) if test is None else test
        asked, order = order[:count], order[count:]
    else:
        asked = separate.prompts if test is None else separate.prompts[:test]
        wanted = {prompt.key for prompt in asked}
        order = [prompt for prompt in order if prompt.key not in wanted]
    count = min(64, len(prompts.prompts) // 10) if tune is None else tune
    chosen, rest = order[:count], order[count:]
    if len(asked) < 2 or len(chosen) < 2 or len(rest) < 2:
        raise DatasetError(
            f"{prompts.name} has {counted(len(prompts.prompts), 'distinct prompt')}; {len(rest)} would be left to "
            f"train on, {len(chosen)} to choose settings by and {len(asked)} to judge, but each part needs 2. Give "
            "more pairs, or reserve fewer prompts with --tune_prompts and --test_prompts."
        )
    kept = {prompt.key for prompt in rest}
    train: list[PreferencePair] = []
    held_out: list[PreferencePair] = []
    for pair in pairs.rated():  # losses of lists need the ratings
        (train if prompt_key(pair) in kept else held_out).append(pair)
    return Parts(train, [prompt.row() for prompt in chosen], [prompt.row() for prompt in asked], held_out)


def _are_chat(prompts: Prompts) -> bool:
    return any(not isinstance(one.prompt, str) for one in prompts.prompts)


def write_parts(parts: Parts, folder: Path) -> tuple[Path, Path | None]:
    """Write the parts into `folder`.

    Returns: the file of the training pairs, and that of the pairs that are not trained on, None without such pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    write_lines(train, [_said(canonical_row(pair, ratings=pair.ratings)) for pair in parts.train])
    write_lines(held_out, [_said(canonical_row(pair, ratings=pair.ratings)) for pair in parts.held_out])
    for name, rows in (("tune", parts.tune), ("test", parts.test)):
        write_lines(folder / f"{name}.jsonl", [json.loads(json.dumps(row, default=str)) for row in rows])
    return train, held_out if parts.held_out else None


def _said(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}
