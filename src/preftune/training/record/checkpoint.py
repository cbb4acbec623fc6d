"""`preftune_state.json` of a checkpoint, one file per rank: the state that a resumed run needs besides transformers'
files.

It holds the reference's fingerprint, the sums since the last log, the state of the guard, the token limit after memory
ran out, the seconds and tokens used of `max_seconds` and `max_train_tokens`, and a method's own state: the moments of
losses, PPO's KL coefficient, the rounds of online training. Without the sums, the first loss logged after a resume
would be the mean of fewer steps than `logging_steps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preftune.errors import ReferenceMismatchError
from preftune.log import warn
from preftune.reference.fingerprint import FINGERPRINT_VERSION
from preftune.storage.json_types import is_count, is_number, is_object, is_text
from preftune.storage.run_directory import write_json
from preftune.training.record.manifest import DamagedError


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
