"""Chooses the checkpoint that a run continues from: the newest complete one of this run, or the named one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.log import say, warn
from preftune.storage.run_directory import run_facts
from preftune.training.record import checkpoint
from preftune.training.record.earlier_run import FOLDER, checkpoints_in, run_id_of
from preftune.training.record.manifest import FILE, DamagedError, Manifest, check_files, read_manifest
from preftune.training.record.same_run import changed_ends, differences

AUTO = "auto"
"""Continue if there is a checkpoint, otherwise start."""
_PARTS = {
    "trainer_state.json": ("trainer_state.json",),
    "the optimizer's state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the scheduler's state": ("scheduler.pt", "global_step*"),
    "the random state": ("rng_state*.pth",),
}
"""What a checkpoint without a manifest must hold, by any of these names."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A checkpoint that can be resumed from."""

    folder: Path
    manifest: Manifest | None
    """None for one of another library or of an older preftune."""
    named: bool
    """The user named it; otherwise it is the newest of the run."""
    newer: tuple[str, ...] = ()
    """Names of later checkpoints in the run directory that are passed over."""

    @property
    def step(self) -> int:
        """The step that it was saved at, whatever its folder is called."""
        if self.manifest is not None:
            return self.manifest.step
        return int(json.loads((self.folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def choose_checkpoint(asked: str | Path | bool | None, output_dir: str) -> Choice | None:
    """The checkpoint to continue from; None to start from the beginning.

    Args:
        asked: nothing, True (the newest complete one of the run in `output_dir`), "auto" (likewise, or None if there is
            none), or a folder.
    Raises:
        ConfigError: no checkpoint, or the one that is named is damaged; with the reasons.
    """
    if asked is None or asked is False:
        return None
    if asked is True or asked == AUTO:
        return _newest(Path(output_dir), needed=asked is True)
    folder = Path(asked)
    if not folder.is_dir():
        raise ConfigError(f"resume_from_checkpoint={str(asked)!r} is not a folder.")
    try:
        manifest = _complete(folder)
    except DamagedError as error:
        raise ConfigError(f"{folder} cannot be resumed from: {error}.{_instead(folder)}") from error
    if manifest is None:
        _check_foreign(folder)
    later = [path.name for step, path in checkpoints_in(Path(output_dir)) if step > Choice(folder, manifest, True).step]
    return Choice(folder, manifest, True, tuple(later))


def _newest(output: Path, *, needed: bool) -> Choice | None:
    own = run_id_of(run_facts(output))
    passed: list[str] = []
    newer: list[str] = []
    for _, folder in checkpoints_in(output):
        try:
            manifest = _complete(folder)
            if manifest is None:
                raise DamagedError(f"it has no {FILE}; name it to use it: {folder}")
            if own is not None and manifest.run != own:
                raise DamagedError("it belongs to another run")
        except DamagedError as error:
            passed.append(f"{folder.name} ({error})")
            newer.append(folder.name)
            continue
        if passed:
            warn(f"skipped: {'; '.join(passed)}. Continuing from {folder.name}.")
        return Choice(folder, manifest, False, tuple(newer))
    if needed:
        earlier = f" Earlier runs of this folder are in {output / FOLDER}." if (output / FOLDER).is_dir() else ""
        found = f"none can be used: {'; '.join(passed)}." if passed else "none was written."
        raise ConfigError(
            f"there is no checkpoint in {output} to resume from: {found}{earlier} Start without "
            "resume_from_checkpoint (--resume), or name the folder."
        )
    if passed:
        warn(f"no checkpoint in {output} can be used, so the run starts from the beginning: {'; '.join(passed)}.")
    return None


def _complete(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint whose files are what was written; None if it has no manifest.

    Raises:
        DamagedError: something is missing or changed, or it cannot be resumed from by design.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if not manifest.resumable:
        raise DamagedError("it holds only the weights (save_only_model)")
    check_files(folder, manifest)
    return manifest


def _check_foreign(folder: Path) -> None:
    """Raises: ConfigError for a checkpoint without a manifest that lacks a part of the training's state."""
    missing = [part for part, names in _PARTS.items() if not any(any(folder.glob(name)) for name in names)]
    if missing:
        raise ConfigError(
            f"{folder} has no {FILE} and lacks {', '.join(missing)}, so the run cannot be continued exactly. Start a "
            f"new run from its weights (--model {folder}), or name another checkpoint."
        )
    try:
        content = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        int(content["global_step"])
        checkpoint.check_types("trainer_state.json", content)
        why = ""
    except DamagedError as error:
        why = str(error)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        why = "its trainer_state.json cannot be read"
    if why:
        raise ConfigError(f"{folder} cannot be resumed from: {why}.{_instead(folder)}")
    warn(
        f"{folder} has no {FILE} (another library or an older preftune wrote it): preftune cannot check that it is "
        "complete and belongs to the same data and settings."
    )


def own_state(choice: Choice, *, rank: int) -> dict[str, Any] | None:
    """What preftune wrote into a checkpoint besides transformers' files; None where it wrote nothing.

    Raises:
        ConfigError: it is damaged, in a checkpoint whose files cannot be checked.
    """
    try:
        state = checkpoint.load_state(choice.folder, rank=rank)
    except (OSError, ValueError, RecursionError):
        state = {}
    why = ""
    if state is not None and "window" not in state:
        why = "its preftune_state.json is not what was written"
    elif state is not None and choice.manifest is None:
        try:
            checkpoint.check_types("preftune_state.json", state)
        except DamagedError as error:
            why = str(error)
    if why:
        raise ConfigError(f"{choice.folder} cannot be resumed from: {why}.{_instead(choice.folder)}")
    return state


def _instead(folder: Path) -> str:
    """A sentence that names the complete checkpoint nearest to a damaged one."""
    for _, other in checkpoints_in(folder.parent):
        if other.name == folder.name:
            continue
        try:
            if _complete(other) is not None:
                return f" {other} is complete: name that one."
        except DamagedError:
            continue
    return " Start a new run without it."


def check_same_run(choice: Choice, facts: Mapping[str, Any], *, processes: int, allow_changed: bool) -> bool:
    """Compare what a checkpoint's run was trained on with what is asked for now.

    Returns: whether settings or the end of the run have changed.
    Raises:
        ConfigError: something that decides about the updates has changed, and `allow_changed` is not set.
    """
    manifest = choice.manifest
    if manifest is None:
        return True
    changes = differences(manifest.facts, facts)
    if manifest.processes != processes:
        changes.append(f"the number of processes ({manifest.processes} before, {processes} now)")
    if changes and not allow_changed:
        raise ConfigError(
            f"{choice.folder} belongs to a run with other settings or data: {'; '.join(changes)}. Resume with those, "
            "start a new run without resume_from_checkpoint (--resume), or accept the change: allow_changed "
            "(--allow_changed)."
        )
    if changes:
        warn(f"resumed with changes: {'; '.join(changes)}.")
    ends = changed_ends(manifest.facts, facts)
    if ends:
        say(f"the end of the run has changed, and its learning rates with it: {'; '.join(ends)}.")
    return bool(changes or ends)
