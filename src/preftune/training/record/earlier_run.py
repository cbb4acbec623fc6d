"""Files of an earlier run are put aside before another run writes to the same directory, so that runs never mix."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import ConfigError
from preftune.log import say
from preftune.models.damage import WEIGHTS, WEIGHTS_FILE
from preftune.storage.run_directory import run_facts

FOLDER = "_earlier"
"""Inside the run directory; the hub upload leaves out names that begin with "_"."""
WRITING = "_writing"
"""Folder of a checkpoint that is being written."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_RUN = (
    "run.json", "metrics.jsonl", "audit.json", "samples.jsonl", "guard.jsonl", "guard_reference.json", "README.md",
    "eval_answers.jsonl",
    "report.html", "report.md", "plots", "eval", "runs", WEIGHTS_FILE, "preftune_reward.json",
    "training_args.bin", "config.json", "generation_config.json", "adapter_config.json", "value.safetensors",
    "chat_template.jinja", "additional_chat_templates", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
)  # fmt: skip
"""Names of the files that a run writes. Other files in the folder belong to the user, and stay."""


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of every folder called `checkpoint-N`, the last step first."""
    if not folder.is_dir():
        return []
    found = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def weights_in(folder: Path) -> list[Path]:
    """The files of the weights in a run directory, without those of checkpoints."""
    return sorted(path for path in folder.iterdir() if path.is_file() and WEIGHTS.fullmatch(path.name))


def run_id_of(facts: dict[str, Any]) -> str | None:
    found = facts.get("id")
    return found if isinstance(found, str) else None


def put_aside_earlier_run(folder: Path, *, model: str, overwrite: bool) -> None:
    """Move the files of an earlier run or of a model into a subfolder, or remove them, and log it.

    Args:
        folder: the run directory.
        model: where the policy was read from; empty if it was passed in memory.
        overwrite: remove the files instead of moving them.
    Raises:
        ConfigError: the policy was read from the run directory.
    """
    names = [
        path.name
        for path in folder.iterdir()
        if path.name in _RUN or WEIGHTS.fullmatch(path.name) or (path.is_dir() and _CHECKPOINT.fullmatch(path.name))
    ]
    is_run = "run.json" in names or any(_CHECKPOINT.fullmatch(name) for name in names)
    if not is_run and not any(WEIGHTS.fullmatch(name) for name in names):
        return
    if model and Path(model).exists() and Path(model).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"the model is read from {model}, inside output_dir={str(folder)!r}, which the new run would replace. "
            "Choose another folder: --output_dir FOLDER."
        )
    facts = run_facts(folder)
    steps = facts.get("steps")
    done = counted(steps if isinstance(steps, int) else 0, "step")
    run = f"an earlier run ({facts.get('outcome') or 'unfinished'}, {done})"
    what = f"{folder} held {run if is_run else 'a model'}"
    if overwrite:
        _remove(folder, names)
        say(f"{what}; it was removed.")
        return
    aside = put_aside(folder, names, run_id_of(facts) or ("run" if is_run else "model"))
    say(f"{what}; it was moved to {aside} (--overwrite removes it instead).")


def put_aside(folder: Path, names: Iterable[str], label: str) -> Path:
    """Move files and folders of a run directory into `_earlier/LABEL-TIME`."""
    stem = f"{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, aside = 1, folder / FOLDER / stem
    while aside.exists():
        number += 1
        aside = folder / FOLDER / f"{stem}-{number}"
    aside.mkdir(parents=True)
    for name in names:
        os.replace(folder / name, aside / name)
    return aside


def sweep_unfinished(folder: Path) -> None:
    """Remove the partly written files of runs that were killed."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    for name in (
        WEIGHTS_FILE,
        "run.json",
        "metrics.jsonl",
        "audit.json",
        "report.html",
        "README.md",
        "samples.jsonl",
        "guard.jsonl",
    ):
        for path in folder.glob(f".{name}-*"):
            path.unlink(missing_ok=True)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
