"""Trainings as processes of their own, for `preftune compare` and `preftune sweep`: a command with a recipe each, which
can be repeated.

Every stage is a run directory with `recipe.yaml`, `log.txt` and, when it is over, `stage.json`. One that is finished
with the same recipe on the same data is not trained again; one that was cut off starts again.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import RequestError
from preftune.storage.atomic import write_whole
from preftune.storage.jsonl import read_lines, read_object
from preftune.storage.run_directory import run_facts, write_json

_WRONG_REQUEST = 2
"""Exit code of a command that was asked for something impossible."""
_LAST = 600
"""Characters of a log that are shown."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training, before it has run."""

    command: str
    """Of preftune, which trains: `dpo`, `reward`, ..."""
    folder: Path
    recipe: Mapping[str, Any]
    """Fields of the command, without `output_dir`."""
    made_of: str
    """Digest of what the recipe's files hold: the model, the data."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage."""

    finished: bool
    seconds: float
    """Of the whole process, loading included."""
    spent: Mapping[str, float]
    """`seconds` and `tokens` of training."""
    steps: int
    peak_gb: float | None
    error: str = ""
    again: bool = True
    """It was run now, not found."""

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "seconds": round(self.seconds, 1)}
        del values["again"]
        return values


def run_stage(stage: Stage, *, watch: Callable[[], bool] | None = None) -> Outcome:
    """Trains, unless it is done.

    Args:
        watch: is called about once a second; the training is stopped where it returns True, and is not `finished`.
    Raises:
        RequestError: the command refuses what it is asked for, which every other trial would do as well.
        KeyboardInterrupt: when the training has stopped.
    """
    known = _found(stage)
    if known is not None:
        return known
    shutil.rmtree(stage.folder, ignore_errors=True)
    stage.folder.mkdir(parents=True)
    text = yaml.safe_dump({**stage.recipe, "output_dir": str(stage.folder)}, sort_keys=False, allow_unicode=True)
    write_whole(stage.folder / "recipe.yaml", text.encode())
    began = time.monotonic()
    code = _run(stage, watch)
    seconds = time.monotonic() - began
    run = run_facts(stage.folder)
    error = "" if code == 0 else last_words(stage.folder / "log.txt")
    if code == _WRONG_REQUEST:
        raise RequestError(f"preftune {stage.command}: {error}")
    lines = read_lines(stage.folder / "metrics.jsonl")
    peaks = [float(line["memory/peak_gb"]) for line in lines if "memory/peak_gb" in line]
    outcome = Outcome(
        finished=code == 0,
        seconds=seconds,
        spent={**run_facts(stage.folder, "spent"), **({"episodes": run["episodes"]} if "episodes" in run else {})},
        steps=int(run.get("steps") or 0),
        peak_gb=max(peaks, default=None),  # GB of 2^30 bytes
        error=error,
    )
    record = {"recipe": dict(stage.recipe), "made_of": stage.made_of, "outcome": outcome.to_dict()}
    write_json(stage.folder / "stage.json", record)
    return outcome


def _found(stage: Stage) -> Outcome | None:
    """How it ended in an earlier run of the comparison, if it did."""
    record = read_object(stage.folder / "stage.json")
    asked = json.loads(json.dumps(dict(stage.recipe), default=str))
    if record.get("recipe") != asked or record.get("made_of") != stage.made_of:
        return None
    outcome = record.get("outcome")
    if not isinstance(outcome, dict) or not outcome.get("finished"):
        return None
    return Outcome(**outcome, again=False)


def _run(stage: Stage, watch: Callable[[], bool] | None) -> int:
    """The command's exit code; its words are in log.txt."""
    words = [stage.command, "--no_report", "--config", str(stage.folder / "recipe.yaml")]
    return run_command(words, stage.folder / "log.txt", watch=watch)


def run_command(words: Sequence[str], log: Path, *, watch: Callable[[], bool] | None = None) -> int:
    """Runs a command of preftune in a process of its own.

    Args:
        words: the command and its flags.
        log: the file that gets its output.
        watch: see `run_stage`.
    Returns: its exit code.
    """
    # -P: a datasets.py in the user's folder is not the package
    command = [sys.executable, "-P", "-m", "preftune.cli.main", *words]
    with open(log, "wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            while True:
                try:
                    return process.wait(timeout=None if watch is None else 1.0)
                except subprocess.TimeoutExpired:
                    if watch is not None and watch():
                        return _stop(process)
        except (KeyboardInterrupt, SystemExit):
            _stop(process)  # a terminal has sent it a signal already; a kill of us alone has not
            raise


def _stop(process: subprocess.Popen[bytes]) -> int:
    """As Ctrl-C; killed where that takes long. A script's background processes inherit that they ignore Ctrl-C."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    try:
        return process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def last_words(log: Path) -> str:
    """The last paragraph that the command said about itself."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = next((line for line in reversed(lines) if line.startswith("preftune: ")), lines[-1] if lines else "")
    return own.removeprefix("preftune: ")[:_LAST]
