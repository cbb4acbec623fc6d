"""The prompts that a policy answers while it is trained: encoded once, asked in an order that only the seed decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from preftune.amounts import counted
from preftune.data.pairs.dataset import PairDataset
from preftune.data.reading.load import load_rows
from preftune.errors import DatasetError
from preftune.generation.backends import template_of
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.prompts import Prompt, Prompts, carried_by, load_prompts
from preftune.log import say
from preftune.training.online.rollout import Rollout
from preftune.training.protocol import TrainerView
from preftune.training.step.shares import shared

_READ = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "id")
"""Columns that are no matter of a rule."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Distinct prompts with their token ids."""

    prompts: Sequence[Prompt]
    token_ids: Sequence[Sequence[int]]
    too_long: int
    """How many were left out because of `max_prompt_length`."""
    repeated: int = 0
    """How many rows repeat the prompt of an earlier row."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def fingerprint(self) -> str:
        """Of the token ids, in their order."""
        digest = xxhash.xxh3_128()
        for ids in self.token_ids:
            digest.update(np.asarray(ids, dtype=np.int64).tobytes() + b"|")
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What run.json says of them."""
        return {
            "prompts": len(self),
            "tokens": sum(map(len, self.token_ids)),
            "too_long": self.too_long,
            "repeated": self.repeated,
            "fingerprint": self.fingerprint,
        }

    def drawn(self, first: int, count: int, *, seed: int) -> list[int]:
        """Numbers of the prompts that are asked from the draw `first` on: every prompt once, in random order, then all
        of them again in another one. Depends on nothing else, so a resumed run goes on where it was.
        """
        chosen = []
        for draw in range(first, first + count):
            epoch, place = divmod(draw, len(self))
            chosen.append(int(_order(len(self), seed, epoch)[place]))
        return chosen


def _order(size: int, seed: int, epoch: int) -> Any:
    return np.random.default_rng([seed, epoch]).permutation(size)


def open_prompts(source: Any, *, split: str = "train", **options: Any) -> Prompts:
    """`load_prompts` with all other columns kept, for rules that read them.

    Args:
        options: `columns`, `format`, `as_chat`.
    """
    if isinstance(source, str | Path) and str(source).lower().endswith(".txt"):
        return load_prompts(source, split=split, **options)
    rows = load_rows(source, split=split)
    return load_prompts(rows, keep_if_there=[column for column in rows.features if column not in _READ], **options)


def prepare_prompts(source: Any, tokenizer: Any, *, max_prompt_length: int | None) -> PromptSet:
    """Prompts of any source: what `load_prompts` takes (pairs, groups, conversations, rows with a prompt, lines).

    Args:
        max_prompt_length: longer prompts are left out, and counted.
    Raises:
        DatasetError: no prompts, or none of them short enough.
    """
    if isinstance(source, Prompts):
        opened = source
    elif isinstance(source, PairDataset):
        rows = [{"prompt": pair.prompt, **carried_by(pair)} for pair in source]
        opened = replace(load_prompts(rows), name=source.name, notes=source.notes)
    else:
        opened = open_prompts(source)
    for note in opened.notes:
        say(note)
    if opened.repeated:
        say(f"{opened.name}: {counted(opened.repeated, 'row repeats', 'rows repeat')} a prompt; each is asked once.")
    found = opened.prompts
    ids = encode_prompts(tokenizer, [p.prompt for p in found], [template_of(p.carried) for p in found])
    kept = [i for i, tokens in enumerate(ids) if max_prompt_length is None or len(tokens) <= max_prompt_length]
    if not kept:
        shortest = min(map(len, ids))
        raise DatasetError(
            f"no prompt ({len(found):,} in all) has at most max_prompt_length={max_prompt_length} tokens (the shortest "
            f"has {shortest:,}). Raise max_prompt_length."
        )
    return PromptSet([found[i] for i in kept], [ids[i] for i in kept], len(found) - len(kept), opened.repeated)


def shared_answers(
    trainer: TrainerView, prompts: PromptSet, asked: Sequence[int], sample: Callable[..., list[Rollout]], *, first: int
) -> list[Rollout]:
    """One answer to each of these prompts of a set.

    Args:
        sample: prompts, token ids and `first` to answers, as a `Sampler` with its model.
        first: number of the first answer, which decides the draws.
    """

    def answer(places: range) -> list[Rollout]:
        rows = [asked[place] for place in places]
        own, token_ids = [prompts.prompts[row] for row in rows], [prompts.token_ids[row] for row in rows]
        return sample(own, token_ids, first=first + places.start)

    return shared(trainer, len(asked), answer)
