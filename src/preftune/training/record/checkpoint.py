"""`preftune_state.json` of a checkpoint, one file per rank: the state that a resumed run needs besides transformers'
files; and what these files may hold.

It holds the reference's fingerprint, the sums since the last log, the state of the guard, the token limit after memory
ran out, the seconds and tokens used of `max_seconds` and `max_train_tokens`, and a method's own state: the moments of
losses, PPO's KL coefficient, the rounds of online training. Without the sums, the first loss logged after a resume
would be the mean of fewer steps than `logging_steps`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from preftune.errors import ReferenceMismatchError
from preftune.log import warn
from preftune.models.shards import local
from preftune.reference.fingerprint import FINGERPRINT_VERSION
from preftune.storage.file_hashes import DamagedError
from preftune.storage.json_types import is_count, is_number, is_object, is_text
from preftune.storage.run_directory import write_json


def _number(value: Any) -> bool:
    """Whether a value is a number that is finite as a float."""
    return is_number(value) and abs(value) < 2**1000


def _numbers(value: Any) -> bool:
    """Whether a value is a number, or a list or object of numbers at any depth. null is one that was not finite."""
    if isinstance(value, dict | list):
        return all(map(_numbers, value.values() if isinstance(value, dict) else value))
    return value is None or _number(value)


def _reference(value: Any) -> bool:
    return is_object(value) and isinstance(value.get("fingerprint", ""), str | None)


def _records(value: Any) -> bool:
    return isinstance(value, list) and all(is_object(one) and is_count(one.get("step")) for one in value)


def _metric(value: Any) -> bool:
    """Whether a value is a number; a metric may be NaN."""
    return isinstance(value, float) or _number(value)


_OWN: Mapping[str, Callable[[Any], bool]] = {
    "window": lambda value: isinstance(value, list | dict) and _numbers(value),
    "step_limit": is_count, "guard": is_object, "reference": _reference, "work": is_object, "rewards": _numbers,
    "moments": _numbers, "loss": _number, "total_loss": _number, "last_logged": is_count, "spent": is_object,
    "ended": is_text, "best_by": is_object, "kl_coef": _number, "rounds": is_count, "sampled": is_count,
    "surplus": is_count, "stream": is_object,
}  # fmt: skip
_TRAINER: Mapping[str, Callable[[Any], bool]] = {
    "global_step": is_count, "max_steps": is_count, "epoch": _number, "total_flos": _number, "log_history": _records,
    "best_metric": _metric, "best_global_step": is_count, "best_model_checkpoint": is_text,
    "stateful_callbacks": is_object, "num_input_tokens_seen": is_count, "train_batch_size": is_count,
}  # fmt: skip
_NEEDED = ("global_step", "log_history", "total_flos", "loss", "total_loss", "last_logged", "reference")
"""Fields that must not be null."""
TRAINER_STATE = "trainer_state.json"

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "exp_inf", "sum")
"""State of an optimiser that has the shape of its weight."""
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
_SETTINGS = ("weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "amsgrad", "maximize", "initial_lr")
"""Settings of an optimiser's groups that decide an update; `lr` is the schedule's."""


def check_states(folder: Path) -> int:
    """Check the types in `trainer_state.json` and in the `preftune_state.json` of every rank.

    Returns: the step of the checkpoint.
    Raises: DamagedError that names the file, and the first field of a wrong type.
    """
    for path in sorted(folder.glob("preftune_state*.json")):
        _checked(path)
    return int(_checked(folder / TRAINER_STATE)["global_step"])


def _checked(path: Path) -> dict[str, Any]:
    """The content of a state file. Raises: DamagedError."""
    kinds, always = (_TRAINER, "global_step") if path.name == TRAINER_STATE else (_OWN, "window")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"its {path.name} cannot be read ({type(error).__name__})") from error
    if not is_object(content) or always not in content:
        raise DamagedError(f"its {path.name} is not what was written")
    known = {field.name for field in dataclasses.fields(TrainerState)}
    if path.name == TRAINER_STATE and (unknown := content.keys() - known):
        raise DamagedError(
            f"its {path.name} has the field {min(unknown)}, which the installed transformers does not know"
        )
    for name, holds in kinds.items():
        value = content.get(name)
        if name in content and not (holds(value) or (value is None and name not in _NEEDED)):
            raise DamagedError(f"its {path.name} has {name}={repr(value)[:60]}")
    return dict(content)


def save_state(folder: Path, content: dict[str, Any], *, rank: int) -> None:
    write_json(_file(folder, rank), content)


def load_state(folder: Path, *, rank: int) -> dict[str, Any] | None:
    """The content that `save_state` wrote; None for a checkpoint of another program (TRL, an older preftune).

    Raises: DamagedError for a file that cannot be read or has a field of a wrong type.
    """
    path = _file(folder, rank)
    return _checked(path) if path.exists() else None


def check_same_reference(state: Mapping[str, Any] | None, fingerprint: str, folder: Path) -> None:
    """Check that a resumed run has the reference with which it started. A fingerprint of another release of preftune
    cannot be compared; it causes a warning.

    Raises:
        ReferenceMismatchError: the references differ; the message gives both fingerprints and the likely cause.
    """
    reference = (state or {}).get("reference", {})
    before = reference.get("fingerprint")
    if before is None or before == fingerprint:
        return
    if reference.get("fingerprint_version") != FINGERPRINT_VERSION:
        warn(
            f"{folder} was written by another release of preftune, which computed the fingerprint of the reference in "
            "another way. It cannot be checked: give the model that the run started from, not a checkpoint of it."
        )
    else:
        raise ReferenceMismatchError(
            f"{folder} was trained against another reference (fingerprint {before[:12]}, now {fingerprint[:12]}). "
            "Resume with the model that the run started from, not with a checkpoint of it: the reference is the model "
            "as received, and the trained weights come from the checkpoint."
        )


def _file(folder: Path, rank: int) -> Path:
    return folder / ("preftune_state.json" if rank == 0 else f"preftune_state_rank{rank}.json")


def check_optimizer(
    optimizer: Any,
    made: Sequence[Mapping[str, Any]],
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    step: int,
    same: bool,
) -> None:
    """Check the state of an optimiser after it was loaded: shapes, signs, counts and settings.

    Args:
        made: settings of the groups as the run makes them.
        named: the model's parameters.
        step: optimiser steps of the run.
        same: whether the checkpoint has the run's settings.
    Raises: ValueError that says what is wrong.
    """
    by_torch = type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("torch.optim")
    for group, expected in zip(optimizer.param_groups, made, strict=True):
        for key in _SETTINGS:
            if key not in expected:
                continue
            if not _like(value := group.get(key), expected[key]) or (same and by_torch and value != expected[key]):
                raise ValueError(f"the optimiser has {key}={value!r:.60}, where the run has {expected[key]!r:.60}")
        if not _like(group.get("lr"), 0.0) or not 0 <= float(group["lr"]) < float("inf"):
            raise ValueError(f"the optimiser has lr={group.get('lr')!r:.60}")
    names = {parameter: name for name, parameter in named}
    needed = by_torch and step > 0 and "betas" in optimizer.defaults and getattr(optimizer, "scaler", None) is None
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state, name = optimizer.state.get(parameter, {}), names.get(parameter, "a weight")
        if needed and not state and "expert" not in name:  # an expert to which no token was routed has no gradient
            raise ValueError(f"the optimiser has no state of {name}")
        for key, value in state.items():
            if problem := _problem(key, value, parameter, step):
                raise ValueError(f"the optimiser's {key} of {name} {problem}")


def _problem(key: str, value: Any, parameter: nn.Parameter, step: int) -> str:
    """What is wrong with an entry of an optimiser's state; empty if nothing is."""
    if key == "step":
        if not (isinstance(value, Tensor) and value.numel() == 1) and not is_number(value):
            return f"is {value!r:.60}"
        return "" if 0 <= float(value) <= step else f"is {float(value):g}, at step {step} of the run"
    if key in _MOMENTS and value is not None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return f"is {value!r:.60}"
        if value.shape != parameter.shape:
            return f"has the shape {tuple(value.shape)}, and the weight {tuple(parameter.shape)}"
    if isinstance(value, Tensor) and value.is_floating_point():
        mine = local(value)
        if not bool(torch.isfinite(mine).all()):
            return "is not finite"
        if key in _SQUARES and bool((mine < 0).any()):
            return "is negative"
    return ""


def check_schedule(scheduler: Any, made: Mapping[str, Any], *, step: int, same: bool) -> None:
    """Check a learning rate schedule after it was loaded.

    Args:
        made: its attributes as the run makes them.
        step: optimiser steps of the run.
        same: whether the checkpoint has the run's settings.
    Raises: ValueError that says what is wrong.
    """
    for key, value in vars(scheduler).items():
        expected = made.get(key)
        changed = value is not expected if key == "optimizer" else not _like(value, expected)
        if key not in made and hasattr(type(scheduler), key):
            raise ValueError(f"the schedule has {key}={value!r:.60}; is it one of another lr_scheduler_type?")
        if key in made and changed:
            raise ValueError(f"the schedule has {key}={value!r:.60}, where the run has {expected!r:.60}")
    at, rates = vars(scheduler).get("last_epoch", 0), made.get("base_lrs")
    if not 0 <= at <= step:
        raise ValueError(f"the schedule is at step {at}, and the run at step {step}")
    if same and rates != vars(scheduler).get("base_lrs"):
        raise ValueError(f"the schedule has base_lrs={scheduler.base_lrs!r:.60}, where the run has {rates!r:.60}")


def _like(value: Any, made: Any) -> bool:
    """Whether a loaded value is of the kind of the one that the run makes: a number for a number, a list for a list of
    its length. Other kinds are not compared.
    """
    if isinstance(made, bool) or not (is_number(made) or isinstance(made, list | tuple)):
        return isinstance(value, bool) or not isinstance(made, bool)
    if is_number(made):
        return (isinstance(value, Tensor) and value.numel() == 1) or (is_number(value) and not math.isnan(value))
    same_length = isinstance(value, list | tuple) and len(value) == len(made)
    return same_length and all(_like(one, other) for one, other in zip(value, made, strict=True))
