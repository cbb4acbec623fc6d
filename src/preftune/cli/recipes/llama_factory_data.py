"""The datasets of LLaMA-Factory's recipes: names that `dataset_info.json` explains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preftune.cli.recipes.carried import Carried
from preftune.cli.recipes.sources import Source, evaluate_on, joined, named_columns, train_on
from preftune.errors import RequestError

_COLUMNS = {
    "response": "completion",
    "chosen": "chosen",
    "rejected": "rejected",
    "messages": "messages",
    "kto_tag": "label",
    "system": "system",
    "tools": "tools",
    "history": "history",
}
"""Key of `columns` -> canonical name; `prompt` and `query` are one text."""
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",),
    "system_tag": ("system",),
}
"""Key of `tags` -> the values that preftune reads."""
_KEYS = ("file_name", "hf_hub_url", "formatting", "ranking", "columns", "tags", "subset", "split", "_folder")
"""The keys of an entry that are read."""


def read(carried: Carried, folder: Path) -> None:
    """Carries over the data of a recipe.

    Args:
        folder: of the recipe, to which paths are relative; LLaMA-Factory's own are relative to the current folder.
    """
    listed = Path(str(carried.take("dataset_dir", "data")))
    places = [listed] if listed.is_absolute() else [folder / listed, Path.cwd() / listed, folder]
    known = _dataset_info(*places)
    samples = carried.take("max_samples")
    for key in ("dataset", "eval_dataset"):
        names = carried.take(key)
        names = [one.strip() for one in names.split(",")] if isinstance(names, str) else list(names or [])
        sources = [_source(name, known, carried, samples) for name in names]
        if key == "dataset":
            train_on(carried, sources)
        else:
            evaluate_on(carried, sources, key)


def _dataset_info(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        file = folder / "dataset_info.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RequestError(
                    f"{file} is not JSON ({error}). Correct it, or name the data with --data."
                ) from error
            return {name: {**entry, "_folder": folder} for name, entry in found.items() if isinstance(entry, dict)}
    return {}


def _source(name: str, known: Mapping[str, Any], carried: Carried, samples: Any) -> Source:
    """A dataset by its name. Arguments: samples: the number of rows to read, or None."""
    part = f"[:{samples}]" if samples else ""
    entry = known.get(name)
    if entry is None:
        carried.lost[f"dataset {name}"] = "No dataset_info.json that was found lists it: write its path or hub id."
        return Source(name, split=f"train{part}" if part else None)
    where = f"dataset {name}"
    columns = named_columns(carried, _columns(entry, carried, where), where)
    for tag, value in (entry.get("tags") or {}).items():
        if value not in _TAGS.get(tag, ()):
            carried.lost[f"{where}: {tag} {value}"] = (
                "Turns are read by role and content, or from and value, of user (human), assistant (gpt), system and "
                "tool: rename other keys and roles in the rows."
            )
    for key in entry:
        if key not in _KEYS and entry[key]:
            carried.lost[f"{where}: {key}"] = "preftune has no option of this name for one dataset."
    split = f"{entry.get('split') or 'train'}{part}" if part or entry.get("split") else None
    place = str(Path(entry["_folder"]) / entry["file_name"]) if "file_name" in entry else None
    return Source(place or str(entry.get("hf_hub_url", name)), entry.get("subset"), split, columns)


def _columns(entry: Mapping[str, Any], carried: Carried, where: str) -> dict[str, str]:
    """Canonical name -> column, of the `columns` of an entry."""
    given = {theirs: str(column) for theirs, column in (entry.get("columns") or {}).items() if column is not None}
    parts = [given.pop(key) for key in ("prompt", "query") if key in given]
    asked = {"prompt": joined(carried, parts, where)} if parts else {}
    for theirs in [theirs for theirs in given if theirs not in _COLUMNS]:
        carried.lost[f"{where}: column {theirs}"] = "Only text is trained, and this column is not read."
        del given[theirs]
    asked |= {_COLUMNS[theirs]: column for theirs, column in given.items()}
    if carried.command in ("dpo", "reward", "ppo") and "messages" in asked:
        asked = {"prompt": asked.pop("messages"), **asked}
    return asked
