"""What a run makes of its settings when it begins, made once on a few numbers before anything is loaded or moved: an
impossible value is reported with its field, where torch or transformers would stop the run without it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler

from preftune.amounts import shown
from preftune.errors import ConfigError
from preftune.training.config.base import PackedConfig

_STEPS = 1000
"""Of a run whose number of steps depends on the data."""


class _Part(NamedTuple):
    what: str
    names: str
    """Fields of which it is made."""
    make: Callable[[Any], Any]


def rehearse(given: PackedConfig) -> None:
    """Raises: ConfigError for settings of which a run could not make its optimiser, schedule, data loader, activation
    checkpointing or compiler; it names the fields that were set.
    """
    args = copy.copy(given)
    if args.learning_rate is None:  # the higher one of those that a trainer may choose
        args.learning_rate = args.adapter_learning_rate
    for part in _PARTS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                part.make(args)
        except Exception as error:  # torch, transformers and the packages of optimisers raise all kinds
            raise ConfigError(
                f"{_changed(given, part.names.split()) or 'The defaults'}: {part.what} cannot be made "
                f"({type(error).__name__}: {' '.join(str(error).split())}). Correct the value, or leave it out."
            ) from error


def _changed(args: Any, names: list[str]) -> str:
    """The fields that differ from their defaults."""
    values = {one.name: (getattr(args, one.name), one.default) for one in fields(args) if one.name in names}
    changed = {name: getattr(value, "value", value) for name, (value, usual) in values.items() if value != usual}
    return ", ".join(f"{name}={shown(changed[name])}" for name in names if changed.get(name) is not None)


def _optimiser(args: Any) -> None:
    if args.optim_args and any(part.count("=") != 1 for part in args.optim_args.split(",")):
        raise ValueError("write name=value, with commas between several")
    model: Any = nn.Sequential(skip_init(nn.Linear, 2, 2))
    if args.optim_target_modules is not None:  # names of the real model's layers
        args.optim_target_modules = "all-linear"
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if isinstance(kind, type):  # otherwise a function of the whole model
        kind(options.pop("params", None) or list(model.parameters()), **options)


def _schedule(args: Any) -> None:
    steps = args.max_steps if args.max_steps > 0 else _STEPS
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimiser, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs
    )
    for rate in getattr(schedule, "lr_lambdas", ()):
        for step in (0, steps // 2, steps):
            float(rate(step))


def _loader(args: Any) -> None:
    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def _checkpointing(args: Any) -> None:
    if args.activation_checkpointing and args.gradient_checkpointing_kwargs:
        options = {"use_reentrant": False, **args.gradient_checkpointing_kwargs}
        checkpoint(torch.sin, torch.zeros(1, requires_grad=True), **options)


def _compiler(args: Any) -> None:
    if args.torch_compile:
        torch.compile(torch.sin, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)


_PARTS = (
    _Part("the optimiser", "optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon", _optimiser),
    _Part("the schedule", "lr_scheduler_type lr_scheduler_kwargs warmup_steps", _schedule),
    _Part(
        "the data loader",
        "dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context",
        _loader,
    ),
    _Part("activation checkpointing", "gradient_checkpointing_kwargs", _checkpointing),
    _Part("the compiler", "torch_compile_backend torch_compile_mode", _compiler),
)
