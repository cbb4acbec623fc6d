"""What an `OnlineTrainer` is put together from: its data loader, its reference, its sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from preftune.errors import ConfigError
from preftune.log import say
from preftune.logps import LogitTransform, choose_engine, pack
from preftune.reference import FrozenCopy, NoReference, choose_source
from preftune.reference.sources import ExplicitModel, Source
from preftune.training.online.config import SamplingConfig
from preftune.training.online.prompts import PromptSet
from preftune.training.online.rollout import Sampler, TransformersSampler
from preftune.training.protocol import OnlineTrainerView
from preftune.types import TokenizedGroup

STEP = "step"
"""The one entry of a trainer's inputs: a `FreshStep`."""


class FreshTrainer(OnlineTrainerView, Protocol):
    """A trainer that samples what it is trained on."""

    @property
    def args(self) -> SamplingConfig: ...
    @property
    def prompts(self) -> PromptSet: ...
    @property
    def needs_reference(self) -> bool: ...
    def autocast(self) -> AbstractContextManager[None]: ...
    def go_on(self) -> None: ...
    def fresh_steps(self) -> Sequence[FreshStep]: ...


class FreshStep:
    """One optimiser step: groups, and whether a new round of answers follows it."""

    def __init__(self, groups: Sequence[TokenizedGroup], *, last: bool) -> None:
        self.groups, self.last = groups, last


class Fresh:
    """The data loader: rounds without end. transformers stops it at `max_steps`."""

    def __init__(self, trainer: FreshTrainer) -> None:
        self._trainer = trainer

    def __iter__(self) -> Iterator[dict[str, FreshStep]]:
        self._trainer.go_on()
        while True:
            for step in self._trainer.fresh_steps():
                yield {STEP: step}


def plan_steps(args: Any, *, prompts: int, asked: int, answers: int, steps: int) -> None:
    """How many steps a run has: `max_steps` if it is given, else what the episodes make.

    Args:
        prompts: of the data.
        asked, answers, steps: prompts of a round, answers to each of them, optimiser steps of a round.
    Raises:
        ConfigError: both are given.
    """
    args.ignore_data_skip = True
    episodes = args.total_episodes or round(args.num_train_epochs * prompts) * answers
    by_an_earlier_trainer = args.max_steps == getattr(args, "planned_steps", None)
    if args.max_steps <= 0 or by_an_earlier_trainer:
        args.max_steps = args.planned_steps = max(1, -(-episodes // (asked * answers))) * steps
    elif args.total_episodes is not None:
        raise ConfigError("max_steps and total_episodes both say how long to train. Give one of them.")


def choose_reference(trainer: FreshTrainer, ref_model: Any) -> Source:
    """Who the reference is; it must be able to score answers that are not written yet.

    Args:
        ref_model: the explicit one, a model, hub id or folder; None takes the policy as received.
    """
    if not trainer.needs_reference:
        if ref_model is not None:
            raise ConfigError("ref_model has no effect with beta=0, which needs no reference. Leave it out.")
        return NoReference()
    from preftune.training.setup.reference import moving_reference, prepare_explicit

    source: Source
    if getattr(trainer.args, "sync_ref_model", False):
        source = moving_reference(trainer, None if ref_model is None else prepare_explicit(trainer, ref_model))
    elif ref_model is not None:
        ref_model = prepare_explicit(trainer, ref_model)
        engine, _ = choose_engine(ref_model, "auto" if trainer.engine.name == "packed" else trainer.engine.name)
        source = ExplicitModel(ref_model, engine)
        source.engine = engine  # type: ignore[attr-defined]  # which a temperature must reach too
    else:
        shortest = sorted(trainer.prompts.token_ids, key=len)[:4]
        probe = pack([TokenizedGroup(ids, (ids,), ()) for ids in shortest]).to(trainer.args.device)
        with trainer.autocast():
            source = choose_source(trainer.model, probe, trainer.engine, trained=lambda: False, reload=None)
        if not source.live:
            source = FrozenCopy(trainer.model)
            size = sum(p.numel() * p.element_size() for p in trainer.model.parameters()) / 2**30
            say(f"all weights are trained, so the reference is a frozen copy of them: {size:.2f} GiB more.")
    say(f"reference: {source.description}.")
    return source


def scale_logps(trainer: FreshTrainer, temperature: float) -> None:
    """From here on log-probabilities are those of the distribution that is sampled from.

    Raises: ConfigError for a model whose log-probabilities cannot be scaled.
    """
    if temperature == 1.0:
        return
    for engine in {trainer.engine, getattr(trainer.reference, "engine", trainer.engine)}:
        transform = getattr(engine, "transform", None)
        if transform is None or transform.softcap is not None:
            raise ConfigError(
                f"temperature={temperature}: this model's log-probabilities cannot be scaled (its logits are capped, "
                "or only the naive engine serves it). Use temperature=1."
            )
        engine.transform = LogitTransform(scale=transform.scale / temperature)


def choose_sampler(trainer: FreshTrainer, tokenizer: Any, *, processor: Any = None) -> Sampler:
    """The model in memory, or vLLM with `use_vllm`.

    Args:
        processor: see `TransformersSampler`.
    """
    args = trainer.args
    options: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    if args.use_vllm:
        from preftune.training.online.vllm_rollout import VllmSampler

        return VllmSampler(tokenizer, model=trainer.model, folder=Path(args.output_dir), **options)
    return TransformersSampler(
        tokenizer,
        batch_size=args.generation_batch_size,
        autocast=trainer.precision.autocast,
        processor=processor,
        **options,
    )
