"""The reference's answers: the model's as it was received, drawn before the first step, and kept.

They are kept in the cache folder under the content of model, tokens and settings, so another run with the same
reference and prompts finds them, and so does a run that is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from preftune.generation.answer_store import AnswerStore
from preftune.generation.lazy_model import identity_in_memory
from preftune.generation.protocol import Kept
from preftune.log import detail
from preftune.reference import as_received_without_adapters, unwrap
from preftune.reference.fingerprint import NUMERICS_VERSION, Numerics
from preftune.storage.cache_folder import cache_folder, make_private
from preftune.storage.jsonl import append_lines, digest
from preftune.training.judged.prompts import Asked
from preftune.training.protocol import GroupTrainerView
from preftune.training.record.run_record import parts
from preftune.training.step.collate import BATCH, collate

VERSION = 1
"""Increased when the same model would answer otherwise."""


def reference_key(trainer: GroupTrainerView, tokens: int) -> str:
    """The address of the model as received and of how it answers.

    A fresh adapter changes nothing and is no part of it.
    """
    model: Any = unwrap(trainer.model)
    held_out = parts(trainer.eval_dataset)[0]  # can be read in any order, which a stream of training rows cannot
    probe = collate([held_out[row] for row in range(min(4, len(held_out)))])[BATCH].to(trainer.args.device)
    with trainer.autocast():
        plain = as_received_without_adapters(model, probe, trainer.engine)
    numerics = Numerics.of(
        model, engine="generate", device=trainer.args.device, autocast=trainer.precision.autocast
    ).digest()
    more = (VERSION, NUMERICS_VERSION, numerics, tokens)
    return identity_in_memory(model, trainer.processing_class, *more, adapters=not plain)


def reference_answers(
    trainer: GroupTrainerView,
    asked: Sequence[Asked],
    answer: Callable[[Sequence[Asked]], list[Kept]],
    *,
    key: str,
    share: Callable[[Sequence[Asked], Callable[[Sequence[Asked]], list[Kept]]], list[Kept]],
) -> list[Kept]:
    """The reference's answers, those that are not kept generated now.

    Args:
        answer: the policy's answers; it must still be the model as received.
        key: of `reference_key`.
        share: divides prompts among the ranks.
    """
    keys = [digest([key, list(one.ids)]) for one in asked]
    path = cache_folder() / "answers" / f"{key}.jsonl"
    known = trainer._on_first_rank(
        lambda: {name: Kept.read(line) for name, line in AnswerStore(path).known.items() if name in set(keys)}
    )
    missing = {name: one for name, one in zip(keys, asked, strict=True) if name not in known}
    if missing:
        found = dict(zip(missing, share(list(missing.values()), answer), strict=True))
        if trainer.is_world_process_zero():
            make_private(path.parent)
            append_lines(path, ({"key": name, **kept._asdict()} for name, kept in found.items()), sealed=True)
        known |= found
    detail(f"eval_judge: of the reference's {len(asked)} answers, {len(asked) - len(missing)} were kept.")
    return [known[name] for name in keys]
