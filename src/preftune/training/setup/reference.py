"""The reference of a run, and the pass over all rows that some references need before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from preftune.amounts import of_type
from preftune.data import GroupDataset
from preftune.errors import ConfigError
from preftune.log import say
from preftune.logps import choose_engine, make_engine
from preftune.models.four_bit import is_quantized
from preftune.reference import (
    ExplicitModel,
    FrozenCopy,
    MovingCopy,
    NoReference,
    Numerics,
    ReferenceScores,
    ScoreStore,
    Source,
    choose_source,
)
from preftune.storage.cache_folder import cache_folder
from preftune.storage.freed_memory import give_back
from preftune.training.protocol import ReferencedTrainerView, TrainerView
from preftune.training.setup.model import settle_compilation
from preftune.training.setup.sharding import shard_model
from preftune.training.step.collate import shortest
from preftune.training.step.lockstep import anywhere, together
from preftune.training.step.memory import score_in_parts
from preftune.types import TokenizedGroup

_LOOKED_UP = 256


def make_reference(trainer: ReferencedTrainerView, ref_model: Any, *, trained: Callable[[], bool]) -> ReferenceScores:
    """The reference of a trainer whose model has been prepared and is on its device.

    Args:
        ref_model: an explicit reference: a model, a hub id or a folder; None for the model as received.
        trained: returns whether the policy has changed since it was received.
    Raises:
        ConfigError: the loss needs no reference, or `ref_model` is not a model or shares parameters with the policy.
    """
    model, engine = trainer.model, trainer.engine
    scored_by = engine.name
    if not trainer.objective.needs_reference:
        if ref_model is not None:
            losses = trainer.args.loss
            raise ConfigError(
                f"ref_model has no effect with loss_type={losses}, which needs no reference. Leave it out."
            )
        if trainer.args.sync_ref_model:
            raise ConfigError("sync_ref_model=True moves a reference, which this loss does not use. Leave it out.")
        if trainer.args.guard == "off":
            return ReferenceScores(NoReference(), engine, None, autocast=trainer.autocast)
    source: Source
    moves = trainer.args.sync_ref_model
    if moves:
        source = moving_reference(trainer, None if ref_model is None else prepare_explicit(trainer, ref_model))
    elif ref_model is None:
        # a real batch shows what switching the adapter off changes
        probe = trainer._batch_of(shortest(trainer.train_dataset.lengths, 4))
        with trainer.autocast():
            source = choose_source(model, probe, engine, trained=trained, reload=_reloader(trainer))
        if not source.live and trainer.needs_live_reference:
            source = FrozenCopy(model)
    else:
        ref_model = prepare_explicit(trainer, ref_model)
        ref_engine, _ = choose_engine(ref_model, "auto" if engine.name == "packed" else engine.name)
        if trainer.args.sharding is not None:
            shard_model(ref_model, trainer.args.sharding, trainer.args.device)
        settle_compilation(ref_model, trainer.args)
        source, scored_by = ExplicitModel(ref_model, ref_engine), ref_engine.name
    if trainer.objective.needs_reference:
        say(f"reference: {source.description}.")
    else:
        say("reference: none for the loss; the guard compares answers to its own prompts with the model as received.")
    store = None
    if trainer.args.reference_cache and not moves:
        if trainer.args.torch_compile:  # other kernels round differently, so scores of an uncompiled run are not reused
            scored_by += f", compiled ({trainer.args.torch_compile_backend}, {trainer.args.torch_compile_mode})"
        numerics = Numerics.of(model, engine=scored_by, device=trainer.args.device, autocast=trainer.precision.autocast)
        name = str(getattr((model if ref_model is None else ref_model).config, "_name_or_path", ""))
        store = ScoreStore(
            cache_folder() / "reference",
            fingerprint=source.fingerprint,
            numerics=numerics.digest(),
            note={"model": name or "a model passed in memory", "reference": source.description, **numerics.facts()},
        )
    return ReferenceScores(
        source, engine, store, autocast=trainer.autocast, anywhere=lambda flag: anywhere(trainer, flag)
    )


def moving_reference(trainer: TrainerView, start: nn.Module | None) -> MovingCopy:
    """The reference of a run with `sync_ref_model`.

    Args:
        start: an explicit reference at the first step; None for the policy.
    """
    source = MovingCopy(trainer.model, start=start)
    say(f"sync_ref_model keeps a second copy of the trainable weights: {source.size / 2**30:.2f} GiB more.")
    return source


class MoveReference(TrainerCallback):
    """Moves the reference towards the policy every `ref_model_sync_steps` steps."""

    def __init__(self, trainer: TrainerView, source: Callable[[], Source | None]) -> None:
        self._trainer, self._source = trainer, source

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        source = self._source()
        if isinstance(source, MovingCopy) and state.global_step % args.ref_model_sync_steps == 0:
            source.follow(self._trainer.model, args.ref_model_mixup_alpha)


def settle_reference(trainer: ReferencedTrainerView) -> None:
    """Make the reference again if the model was changed after the trainer was made, because scores are cached under the
    fingerprint of the reference. It has no effect once the policy was trained.
    """
    source = trainer.reference.source
    if trainer._policy_changed or source.unchanged(trainer.model):
        return
    say("the model was changed after the trainer was made; the reference is the model as it is now:")
    explicit = source.model if isinstance(source, ExplicitModel) else None
    trainer.reference = make_reference(trainer, explicit, trained=lambda: trainer._policy_changed)
    if trainer.is_world_process_zero():
        trainer._record.note(**trainer.record_facts())


def score_everything(trainer: ReferencedTrainerView, datasets: Iterable[GroupDataset]) -> None:
    """Score all rows under the reference that have no score yet. Ranks share the work through the cache; a rank then
    scores what the others' scores did not reach it for (no shared disk, cache off).
    """
    reference, args = trainer.reference, trainer.args
    size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
    for share in (True, False) if args.world_size > 1 else (False,):
        for dataset in datasets:
            rows = range(args.process_index, len(dataset), args.world_size) if share else range(len(dataset))
            _score(trainer, dataset, rows, size)
        trainer.accelerator.wait_for_everyone()
    give_back()
    if isinstance(reference.source, ExplicitModel) and not trainer.needs_live_reference:
        reference.source.release()


def _score(trainer: ReferencedTrainerView, dataset: GroupDataset, rows: range, size: int) -> None:
    quiet = trainer.args.disable_tqdm or not trainer.is_local_process_zero()

    def score(groups: Sequence[TokenizedGroup]) -> Sequence[None]:
        trainer.reference.beforehand += len(trainer.reference.score_groups(trainer.model, groups, trainer.args.device))
        return [None] * len(groups)

    with tqdm(total=len(rows), desc="Reference scores", unit="row", disable=True if quiet else None) as bar:
        batches = without_scores(trainer.reference.missing, dataset, rows, size, passed=bar.update)
        while anywhere(trainer, bool(batch := next(batches, []))):
            score_in_parts(trainer, batch, score, work="reference")


def without_scores(
    missing: Callable[[Iterable[TokenizedGroup]], list[TokenizedGroup]],
    dataset: GroupDataset,
    rows: range,
    size: int,
    *,
    passed: Callable[[int], Any] = lambda rows: None,
) -> Iterator[list[TokenizedGroup]]:
    """The rows without a score in batches of `size`, looked up a few hundred at a time while they are consumed.

    Args:
        missing: the groups of some that would have to be scored.
        passed: called with the number of rows that were looked up.
    """
    waiting: list[TokenizedGroup] = []
    for start in range(0, len(rows), _LOOKED_UP):
        part = [dataset[row] for row in rows[start : start + _LOOKED_UP]]
        waiting.extend(missing(part))
        while len(waiting) >= size or (waiting and start + _LOOKED_UP >= len(rows)):
            batch, waiting = waiting[:size], waiting[size:]
            yield batch
        passed(len(part))


def prepare_explicit(trainer: TrainerView, ref_model: Any) -> Any:
    """An explicit reference, frozen, in the precision in which the policy is computed, on its device.

    Args:
        ref_model: a model, a hub id or a folder.
    Raises:
        ConfigError: it is not a model, or it shares parameters with the policy.
    """
    from dataclasses import replace

    import torch

    from preftune.models.precision import apply_precision

    if isinstance(ref_model, str | os.PathLike):
        from preftune.models import load_model

        ref_model = load_model(ref_model, trust_remote_code=trainer.args.trust_remote_code)
    if not isinstance(ref_model, torch.nn.Module):
        raise ConfigError(
            f"ref_model is {of_type(ref_model)}, not a model. Name the arguments: DPOTrainer(model=..., "
            "args=..., train_dataset=...); the second without a name is ref_model."
        )
    policys = {id(parameter) for parameter in trainer.model.parameters()}
    if any(id(parameter) in policys for parameter in ref_model.parameters()):
        raise ConfigError(
            "model and ref_model are the same object, or one is an adapter around the other. Leave ref_model out: the "
            "reference is then the model as received."
        )
    for parameter in ref_model.parameters():
        parameter.requires_grad_(False)
    # trained weights are float32 under autocast, and the reference of full fine-tuning must use the same kernels
    precision = replace(trainer.precision, frozen=torch.float32) if trainer.full else trainer.precision
    apply_precision(ref_model, precision)
    if is_quantized(ref_model) or together(trainer):  # sharding moves each rank's part itself
        return ref_model
    return ref_model.to(trainer.args.device)


def _reloader(trainer: ReferencedTrainerView) -> Callable[[], nn.Module] | None:
    """A function that loads the model again from the source that its config names, ready for the policy's engine; None
    without a source. The caller must check the weights.
    """
    name = getattr(trainer.model.config, "_name_or_path", "")
    if not name:
        return None

    def reload() -> nn.Module:
        from preftune.models import load_model

        again: nn.Module = prepare_explicit(trainer, load_model(name, trust_remote_code=trainer.args.trust_remote_code))
        make_engine(again, trainer.engine.name)
        settle_compilation(again, trainer.args)
        return again

    return reload
