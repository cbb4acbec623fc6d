"""The record of a run in its directory: run.json and metrics.jsonl."""

from __future__ import annotations

import functools
import platform
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from preftune.amounts import counted
from preftune.data import GroupDataset
from preftune.log import take_notes, warn
from preftune.secret_values import hidden, without_secrets
from preftune.storage.jsonl import read_lines, write_lines
from preftune.storage.run_directory import append_line, cut_back, plain, write_json
from preftune.training.protocol import RecordedTrainerView, TrainerView
from preftune.training.record.stopping import StoppedError

_PACKAGES = ("preftune", "torch", "transformers", "accelerate", "peft", "datasets", "bitsandbytes")


def new_id() -> str:
    """A random id of a run, for run.json, its checkpoints and its final weights."""
    return uuid.uuid4().hex[:16]


class RunRecord(TrainerCallback):
    """The callback that writes run.json and metrics.jsonl. Only the first process writes."""

    def __init__(self, folder: str, facts: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.facts = facts
        self._lines: list[dict[str, Any]] = []
        self._began = time.time()
        self._outcome: str | None = None
        self._resumed_step: int | None = None
        self._noting = False

    def begin(self, *, resumed_step: int | None) -> None:
        """Write run.json with the outcome "running"."""
        self._resumed_step = resumed_step
        if resumed_step is not None:
            self.facts["resumed_from_step"] = resumed_step
        self._began = time.time()
        self._outcome = "running"
        self.facts["notes"], self._noting = take_notes(), True
        self._write()

    def cut(self, logged: Iterable[Mapping[str, Any]] = ()) -> None:
        """Remove the metrics that a resumed run will log again, and restore missing ones with a warning. A new run
        keeps only the lines that it logged before its start.

        Args:
            logged: lines that the run logged before its checkpoint, as the checkpoint has them.
        """
        metrics = self.folder / "metrics.jsonl"
        if self._resumed_step is not None:
            cut_back(metrics, self._resumed_step)
            if lost := _restore(metrics, logged):
                warn(
                    f"{metrics} is not what this run wrote: the figures of {counted(len(lost), 'step')} were missing "
                    f"or changed (first: step {lost[0]}). They are restored from the checkpoint, in place of the other "
                    "lines of these steps. The weights are not affected."
                )
            return
        metrics.unlink(missing_ok=True)
        for line in self._lines:  # an evaluation before training belongs to this run
            append_line(metrics, line)

    def note(self, **facts: Any) -> None:
        """Add facts, and write them at once after `begin`. Every process may call it; only the first one begins and
        writes the record.
        """
        self.facts |= facts
        if self._outcome is not None:
            self._write()

    @contextmanager
    def ended(self, trainer: TrainerView) -> Iterator[None]:
        """Within this context, an error is written to run.json as "interrupted" or "failed", and raised again."""
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | StoppedError)
            by = getattr(error, "signal", "SIGINT")
            more = {"stopped_by": by} if stopped else {"error": hidden(f"{type(error).__name__}: {error}")}
            try:  # other ranks may hang, so only this rank's seconds and tokens are written
                self.end(trainer, "interrupted" if stopped else "failed", trainer.limits.state(), **more)
            except OSError as unwritten:  # such as a full disk, which is then probably the error itself
                warn(f"run.json could not be written ({unwritten.strerror or unwritten}) and may say 'running'.")
            raise

    def end(self, trainer: TrainerView, outcome: str, spent: Mapping[str, float], **more: Any) -> None:
        """Write run.json for the last time.

        Args:
            outcome: "finished", "interrupted" or "failed".
            spent: seconds and tokens.
        """
        take_notes()  # discards the rest, which must not enter the record of this process's next run
        if trainer.is_world_process_zero():
            self.facts |= {
                "steps": trainer.state.global_step,
                "spent": spent,
                "ended_by": trainer.limits.reached,
                **more,
            }
            self._outcome = outcome
            self._write()

    @property
    def has_ended(self) -> bool:
        """Whether `begin` was called: true during the run and after it."""
        return self._outcome is not None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the log messages from before the first step to run.json, shown or not."""
        if self._noting:
            self._noting = False
            self.note(notes=[*self.facts["notes"], *take_notes()])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "time": time.time(), **logs}
            if "train_loss" in logs:  # transformers' callbacks that print take it out
                line["total_flos"] = state.total_flos
            if self._outcome is None:
                self._lines.append(line)
                if (self.folder / "run.json").exists():  # it and the metrics there belong to an earlier run
                    return
            append_line(self.folder / "metrics.jsonl", line)

    def _write(self) -> None:
        now = time.time()
        timings = {"started": self._began, "updated": now, "seconds": round(now - self._began, 3)}
        write_json(self.folder / "run.json", {**self.facts, "outcome": self._outcome, "timings": timings})


def _restore(metrics: Path, logged: Iterable[Mapping[str, Any]]) -> list[int]:
    """Replace the lines of steps whose logged lines the file lacks or has with other values; replace the whole file if
    it has none of the logged lines, because another run wrote it.

    Returns: these steps.
    """
    there: dict[Any, list[dict[str, Any]]] = {}
    for record in read_lines(metrics):
        there.setdefault(record.get("step", 0), []).append(record)
    wanted = [line for line in map(plain, logged) if "train_loss" not in line]
    missing = [
        line for line in wanted if not any(line.items() <= record.items() for record in there.get(line["step"], ()))
    ]
    if not missing:
        return []
    lost = {line["step"] for line in missing}
    if len(missing) == len(wanted):
        there = {}
    kept = [record for step, records in there.items() if step not in lost for record in records]
    restored = [line for line in wanted if line["step"] in lost]
    write_lines(metrics, map(plain, sorted([*kept, *restored], key=lambda line: line.get("step", 0))))
    return sorted(lost)


def facts_of(trainer: RecordedTrainerView) -> dict[str, Any]:
    """The facts of a run that run.json has before the first step."""
    name = str(getattr(trainer.model.config, "_name_or_path", ""))
    return {
        **environment(),
        "method": trainer.method,
        "configuration": configuration(trainer.args),
        "precision": trainer.precision.describe(),
        "engine": {"name": trainer.engine.name, "reason": trainer.support.reason},
        "data": trainer.data_facts(),
        "model": {"name": name, "full_fine_tuning": trainer.full},
        **trainer.record_facts(),
        "seeds": {"seed": trainer.args.seed, "data_seed": trainer.args.data_seed},
    }


def data_facts(groups: GroupDataset) -> dict[str, Any]:
    return {
        "pairs": groups.pairs,
        **({"answers": sum(groups.labels), "good": groups.labels[0]} if any(groups.labels) else {}),
        "groups": len(groups),
        "tokens": int(groups.total_tokens),
        "scored_tokens": groups.scored_tokens,
        "fingerprint": groups.fingerprint,
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Those of Python and of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def environment() -> dict[str, Any]:
    """Versions and hardware of this process."""
    import torch

    hardware: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    return {"versions": dict(_versions()), "hardware": hardware, "command": without_secrets(sys.argv)}


def configuration(args: Any) -> dict[str, Any]:
    """The resolved configuration, without secrets."""
    values = plain(args.to_dict())
    if "pad_token" in values:  # transformers hides every field whose name ends in _token
        values["pad_token"] = plain(args.pad_token)
    return dict(without_secrets(values))


def parts(eval_dataset: Any) -> list[GroupDataset]:
    if eval_dataset is None:
        return []
    return list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
