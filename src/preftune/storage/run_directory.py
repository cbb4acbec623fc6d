"""The run directory: the contract between training, evaluation and report. It is readable after kill -9.

Whole files are written to a temporary name, synced and renamed; metrics.jsonl only grows, line by line, and is cut
back to the checkpoint when a run resumes.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.errors import RequestError
from preftune.log import warn
from preftune.storage import jsonl
from preftune.storage.atomic import naming, write_whole


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`jsonl.write_json` for values of any type, which are made plain first."""
    jsonl.write_json(path, plain(content))


def run_facts(folder: str | os.PathLike[str], part: str = "") -> dict[str, Any]:
    """The contents of run.json, or the object under a name in it (`model`, `configuration`, `spent`); otherwise
    empty. A file that is there and cannot be read is reported once.
    """
    path = Path(folder).expanduser() / "run.json"
    facts = jsonl.read_object(path)
    if not facts and str(path) not in _REPORTED and path.is_file():
        _REPORTED.add(str(path))
        warn(
            f"{path} does not hold the record of a run (the file is damaged), so the settings, the base model and the "
            "outcome of the run are not known from it. Put it back from a copy, or remove it to continue without it."
        )
    # another program may have written the file, and readers look inside these
    facts |= {name: {} for name in _OBJECTS if not isinstance(facts.get(name, {}), dict)}
    found = facts.get(part) if part else facts
    return found if isinstance(found, dict) else {}


PLAIN_TEXT = "plain text and tokenised without a template"
"""What the notes of a run say of rows without turns, where the tokenizer has a chat template."""
SEEDS = "seeds.json"
"""The file of a folder of several seeds."""
_OBJECTS = ("configuration", "data", "model", "result", "spent")
_REPORTED: set[str] = set()
"""Paths of the damaged files that were reported."""


def seed_folders(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The run directories of several seeds by seed, if `preftune dpo --seeds` made this folder; otherwise empty.

    Raises: RequestError for a seed without a folder.
    """
    root = Path(folder).expanduser()
    seeds = jsonl.read_object(root / SEEDS).get("seeds")
    named = {seed: root / f"seed-{seed}" for seed in seeds if isinstance(seed, int)} if isinstance(seeds, list) else {}
    for seed, run in named.items():
        if not run.is_dir():
            raise RequestError(
                f"{root / SEEDS} names seed {seed}, and there is no folder {run}. Give the same training command "
                "again, or name one seed's folder as the model."
            )
    return named


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Appends one JSON object as one line, in a single write."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(content), ensure_ascii=False) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, the totals of a whole run (because the run continues), and lines that are
    not records. If more is broken than the one unfinished line that a crash leaves at the end, this is reported.
    """
    if not path.exists():
        return
    kept, damaged = [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # of bad UTF-8 too
            record = None
        if not isinstance(record, dict):
            damaged += [number] if line.strip() and number < len(lines) else []
            continue
        if "train_loss" in record:
            continue
        if isinstance(at := record.get("step", 0), int | float) and at <= step:
            kept.append(line)
    if damaged:
        warn(
            f"{path}: {counted(len(damaged), 'line')} cannot be read and will be left out (first: {damaged[0]}). The "
            "figures of training are also in trainer_state.json of its checkpoints (log_history)."
        )
    write_whole(path, b"".join(line + b"\n" for line in kept))


def check_encodable(path: str | os.PathLike[str], name: str, fix: str) -> None:
    """Refuses an output path that is not UTF-8: the libraries that write weights, tokenizers and Parquet files take no
    other, and would fail when the work is done.

    Args:
        name: the option or field, for the message.
        fix: the option with what it takes.
    Raises: RequestError.
    """
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            f"{name}={text!r} is not valid UTF-8, and several libraries write to no such path. Choose another one: "
            f"{fix}."
        ) from None


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Creates the folder and checks that files can be written there, before any expensive work.

    Raises:
        RequestError: with the cause.
    """
    check_encodable(folder, "output_dir", "--output_dir FOLDER")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RequestError(
            f"output_dir={str(path)!r} cannot be written ({error.strerror or error}). Choose a folder that you own: "
            "--output_dir FOLDER."
        ) from error


def plain(value: Any) -> Any:
    """Converts values to JSON without NaN, tensors or enums; unknown objects become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "item") and (value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)) == 1:
        return plain(value.item())
    return str(getattr(value, "value", value))
