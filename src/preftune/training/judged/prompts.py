"""Which prompts are answered at an evaluation: some of each held-out set, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.generation.backends import template_of
from preftune.generation.encode_prompts import encode_prompts
from preftune.generation.prompts import CATEGORIES, KEYS, load_prompts
from preftune.log import say
from preftune.training.config.eval_judge import PROMPTS
from preftune.training.guard.samples import Prompt, prompts_of

SINGLE = "eval"
"""The name of the only held-out set."""


class Asked(NamedTuple):
    """A prompt that is answered."""

    row: Mapping[str, Any]
    """What a judge sees: `id`, `prompt`, and for prompts of a file its other columns."""
    ids: Sequence[int]
    """Its token ids, from which the answer is generated."""


def asked_of(held_out: Any, args: Any, tokenizer: Any, *, longest: int | None) -> dict[str, list[Asked]]:
    """The prompts by held-out set.

    Args:
        held_out: rows that are not trained on, opened; or several sets of them by name.
        longest: tokens that a prompt may have; longer ones are left out and counted.
    Raises: ConfigError where no prompts are found.
    """
    sets = held_out if isinstance(held_out, Mapping) else {SINGLE: held_out}
    wanted = PROMPTS if args.eval_prompts is None else args.eval_prompts
    if isinstance(wanted, int):
        rows = {name: [_row(prompt) for prompt in prompts_of(part, wanted, tokenizer)] for name, part in sets.items()}
    elif len(sets) > 1:
        raise ConfigError(
            f"eval_prompts={wanted!r} with several held-out sets ({', '.join(map(repr, sets))}): these prompts belong "
            "to none of them. Give a number of prompts, which are taken from each set."
        )
    else:
        rows = {name: _of_file(wanted, part, tokenizer) for name, part in sets.items()}
    return {name: _fitting(name, of_set, tokenizer, longest) for name, of_set in rows.items()}


def _row(prompt: Prompt) -> tuple[dict[str, Any], Sequence[int] | None]:
    template = dict(prompt.template)
    tools = template.pop("tools", None)
    carried = {"tools": tools, "chat_template_kwargs": template}
    row = {"id": prompt.id, "prompt": prompt.text, **{name: value for name, value in carried.items() if value}}
    return row, prompt.ids


def _of_file(path: str, part: Any, tokenizer: Any) -> list[tuple[dict[str, Any], Sequence[int] | None]]:
    """Plain prompts become messages where the held-out rows are conversations."""
    first = prompts_of(part, 1, tokenizer)
    chat = bool(first) and not isinstance(first[0].text, str) and bool(getattr(tokenizer, "chat_template", None))
    return [(one.row(), None) for one in load_prompts(path, as_chat=chat, keep_if_there=(*CATEGORIES, *KEYS)).prompts]


def _fitting(
    name: str, rows: Sequence[tuple[dict[str, Any], Sequence[int] | None]], tokenizer: Any, longest: int | None
) -> list[Asked]:
    prompts = [row["prompt"] if ids is None else list(ids) for row, ids in rows]
    encoded = encode_prompts(tokenizer, prompts, [template_of(row) for row, _ in rows]) if rows else []
    found = [Asked(row, ids) for (row, _), ids in zip(rows, encoded, strict=True)]
    kept = [one for one in found if longest is None or len(one.ids) <= longest]
    if len(kept) < len(found):
        say(
            f"eval_judge: {counted(len(found) - len(kept), 'prompt')} of {name} and an answer exceed the model's "
            "positions and will be left out."
        )
    if not kept:
        raise ConfigError(
            f"eval_judge finds no prompt in the held-out rows ({name}) that can be answered. Name a file with prompts "
            "in eval_prompts."
        )
    return kept
