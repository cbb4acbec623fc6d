"""Choice of the checkpoint that a run continues from: the newest complete one of this run, or a named one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.log import say, warn
from preftune.storage.file_hashes import DamagedError, check_files
from preftune.storage.run_directory import run_facts
from preftune.training.record import checkpoint
from preftune.training.record.earlier_run import FOLDER, checkpoints_in, run_id_of
from preftune.training.record.manifest import FILE, Manifest, read_manifest
from preftune.training.record.same_run import changed_ends, differences

AUTO = "auto"
"""Value of `resume_from_checkpoint`: continue if there is a checkpoint, otherwise start from the beginning."""
_PARTS = {
    "trainer_state.json": ("trainer_state.json",),
    "the optimizer's state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "the scheduler's state": ("scheduler.pt", "global_step*"),
    "the random state": ("rng_state*.pth",),
}
"""The parts that a checkpoint without a manifest must hold, with patterns of their file names."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A checkpoint that can be resumed from."""

    folder: Path
    manifest: Manifest | None
    """None for a checkpoint of another library or of an older preftune."""
    named: bool
    """Whether the user named it; otherwise it is the newest of the run."""
    newer: tuple[str, ...] = ()
    """Names of later checkpoints in the run directory that are not used."""

    @property
    def step(self) -> int:
        """The step at which it was saved, from its files, not from the name of its folder."""
        if self.manifest is not None:
            return self.manifest.step
        return int(json.loads((self.folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])


def choose_checkpoint(asked: str | Path | bool | None, output_dir: str) -> Choice | None:
    """The checkpoint to continue from; None to start from the beginning.

    Args:
        asked: None or False for the beginning; True for the newest complete checkpoint of the run in `output_dir`;
            "auto" for the same if there is one, else the beginning; or a folder.
    Raises:
        ConfigError: there is no checkpoint, or the named one is damaged; the message gives the reasons.
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
    """The manifest of a checkpoint, after its files and their contents were checked; None if it has no manifest.

    Raises:
        DamagedError: a file is missing or changed, has a value of a wrong type or is of another step, or the checkpoint
            holds only weights.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if not manifest.resumable:
        raise DamagedError("it holds only the weights (save_only_model)")
    check_files(folder, manifest.files)
    step = checkpoint.check_states(folder)
    if step != manifest.step:
        raise DamagedError(f"its {checkpoint.TRAINER_STATE} is of step {step}, and its {FILE} of step {manifest.step}")
    return manifest


def _check_foreign(folder: Path) -> None:
    """Warn that a checkpoint without a manifest cannot be checked.

    Raises: ConfigError if it lacks a part of the training's state, or a file with its state is damaged.
    """
    missing = [part for part, names in _PARTS.items() if not any(any(folder.glob(name)) for name in names)]
    if missing:
        raise ConfigError(
            f"{folder} has no {FILE} and lacks {', '.join(missing)}, so the run cannot be continued exactly. Start a "
            f"new run from its weights (--model {folder}), or name another checkpoint."
        )
    try:
        checkpoint.check_states(folder)
    except DamagedError as error:
        raise ConfigError(f"{folder} cannot be resumed from: {error}.{_instead(folder)}") from error
    warn(
        f"{folder} has no {FILE} (another library or an older preftune wrote it): preftune cannot check that it is "
        "complete and belongs to the same data and settings."
    )


def own_state(choice: Choice, *, rank: int) -> dict[str, Any] | None:
    """The content of a checkpoint's `preftune_state.json`; None if it has no such file.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        return checkpoint.load_state(choice.folder, rank=rank)
    except DamagedError as error:
        raise ConfigError(f"{choice.folder} cannot be resumed from: {error}.{_instead(choice.folder)}") from error


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
    """Compare the settings and data of a checkpoint's run with the present ones.

    Args:
        facts: the present ones, from `same_run.facts_of`.
        processes: the present number of ranks.
        allow_changed: whether changes are only warned of.
    Returns: whether settings or the end of the run have changed; True for a checkpoint without a manifest.
    Raises:
        ConfigError: settings or data that determine the updates have changed, and `allow_changed` is not set.
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
