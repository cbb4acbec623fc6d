"""The manifest of a checkpoint: its files, its run and step, and the settings and data of that run.

A checkpoint is complete if it has a manifest and every file has the size and the hash that the manifest gives. The
manifest is the last file that is written before the folder is renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from preftune.models.damage import MANIFEST
from preftune.storage.atomic import sync
from preftune.storage.file_hashes import DamagedError, size_and_hash
from preftune.storage.json_types import is_count, is_object, is_text, is_truth
from preftune.storage.run_directory import plain, write_json

FILE = MANIFEST
_VERSION = 1
_CHECK = "check"
"""Key of the manifest's own hash, which older versions of preftune did not write."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest."""

    run: str
    """Id of the run, as in run.json."""
    step: int
    processes: int
    resumable: bool
    """False if it holds only weights (`save_only_model`)."""
    facts: Mapping[str, Any]
    """Settings, data and adapter, which determine the updates (`same_run.facts_of`)."""
    files: Mapping[str, tuple[int, str]]
    """Path inside the folder -> bytes and hash (xxh3, 128 bits)."""


def write_manifest(
    folder: Path, *, run: str, step: int, processes: int, resumable: bool, facts: Mapping[str, Any]
) -> None:
    """Flush all files of a folder to the disk, and write the manifest. Raises: OSError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    for path in paths:
        sync(path)
    files = {path.relative_to(folder).as_posix(): size_and_hash(path) for path in paths}
    manifest = Manifest(run, step, processes, resumable, facts, files)
    content = {"version": _VERSION, **asdict(manifest)}
    write_json(folder / FILE, content | {_CHECK: _hash_of(content)})
    sync(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest; None if the folder has no manifest (checkpoints of another library or of an older preftune).

    Raises:
        DamagedError: the manifest cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check = content.pop(_CHECK, None)
        if check is not None and check != _hash_of(content):
            raise DamagedError(f"the content of {FILE} is not what was written")
        version = content.pop("version")
        if version != _VERSION:
            raise DamagedError(f"its {FILE} has version {version}, and this preftune reads version {_VERSION}")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in content.pop("files").items()}
        return _of_right_types(Manifest(**content, files=files))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its {FILE} cannot be read ({type(error).__name__})") from error


def _of_right_types(manifest: Manifest) -> Manifest:
    """The manifest, checked because it may have no hash of its own. Raises: ValueError for a field of a wrong type."""
    facts = manifest.facts
    whole = is_count(manifest.step) and is_count(manifest.processes)
    parts = is_object(facts) and all(
        isinstance(facts.get(name), dict | None) for name in ("settings", "data", "adapter", "ends")
    )
    if not (whole and parts and is_text(manifest.run) and is_truth(manifest.resumable)):
        raise ValueError("a field has a wrong type")
    if not is_count((facts.get("data") or {}).get("rows", 0)):
        raise ValueError("the number of rows has a wrong type")
    return manifest


def _hash_of(content: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(plain(content)))
    return xxhash.xxh3_128(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
