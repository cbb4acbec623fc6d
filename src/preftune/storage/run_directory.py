"""The run directory: the contract between training, evaluation and report. Readable after kill -9.

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

from preftune.errors import RequestError
from preftune.log import warn
from preftune.storage import jsonl
from preftune.storage.atomic import naming, write_whole


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`jsonl.write_json` of values of any kind, made plain first."""
    jsonl.write_json(path, plain(content))


def run_facts(folder: str | os.PathLike[str], part: str = "") -> dict[str, Any]:
    """What run.json says, or the object that it holds under a name (`model`, `configuration`, `spent`); else empty."""
    facts = jsonl.read_object(Path(folder).expanduser() / "run.json")
    found = facts.get(part) if part else facts
    return found if isinstance(found, dict) else {}


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object as one line, in a single write."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(content), ensure_ascii=False) + "\n")


def cut_back(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, the sums of a whole run (this is not its end any more), and lines that are
    no records. More than the one unfinished line that a crash leaves at the end are reported.
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
            f"{len(damaged):,} lines of {path} cannot be read and are left out (first: {damaged[0]}). The figures of "
            "training are also in trainer_state.json of its checkpoints (log_history)."
        )
    write_whole(path, b"".join(line + b"\n" for line in kept))


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make the folder and prove that files can be written there, before anything expensive happens.

    Raises:
        RequestError: with what is in the way.
    """
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
    """JSON without NaN, tensors or enums; unknown objects by their text."""
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
