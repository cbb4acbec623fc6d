"""Resolves a model's name to a folder, an adapter, a GGUF file or the hub; an unknown name gives similar ones."""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from preftune.amounts import of_type
from preftune.errors import ModelError
from preftune.hub import Unreachable, unreachable
from preftune.models.damage import ADAPTER_CONFIG, WEIGHTS_FILE, check_configs
from preftune.storage.atomic import write_whole
from preftune.storage.jsonl import read_object
from preftune.storage.run_directory import run_facts
from preftune.storage.run_lock import writer_of

Kind: TypeAlias = Literal["folder", "adapter", "gguf", "hub", "hub-adapter"]

FORM_FILE = "preftune_reward.json"
"""File in the folder of a reward model that describes its training data."""

WEIGHTS_OF_RANKS = "weights_of_ranks"
"""Folder of a checkpoint, in which each rank wrote its part of the weights."""
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_ASK_AGAIN_S = 60
KNOWN = (
    "HuggingFaceTB/SmolLM3-3B",
    "HuggingFaceTB/SmolLM3-3B-Base",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen3-0.6B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
)
"""Models of tutorials, known without a request to the hub. SmolLM3-3B is instruction-tuned, without -Instruct in its
name.
"""
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Location:
    """The result of resolving a name."""

    kind: Kind
    name: str
    """The folder, the GGUF file, or the hub id."""
    local_files_only: bool = False
    """Whether the hub cannot be reached but its cache on this machine holds the model."""


def locate(name: str | os.PathLike[str], *, revision: str | None = None) -> Location:
    """Resolves `name` without loading anything; the hub is asked once, with a short timeout.

    Raises: ModelError for an unknown name, with similar names.
    """
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else ""
    if not text.strip():
        what = "empty" if isinstance(name, str) else "missing" if name is None else of_type(name)
        raise ModelError(
            f"The model's name is {what}. Give a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or a path."
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _locate_folder(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return Location("gguf", str(path))
        raise ModelError(
            f"{text} is a file, not a model. Give the folder that holds config.json and the weights, or a .gguf file."
        )
    if not _HUB_ID.fullmatch(text) or path.suffix.lower() == ".gguf":
        raise ModelError(f"There is no model at {text}.{_near_folders(path)}")
    return _locate_on_hub(text, revision)


def same_model(one: str, other: str) -> bool:
    """Whether two names are one model: the same name, or the same folder or file."""
    first, second = Path(one).expanduser(), Path(other).expanduser()
    return one == other or (first.exists() and second.exists() and first.resolve() == second.resolve())


def is_adapter_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a PEFT adapter (its config and its weights)."""
    folder = Path(path).expanduser()
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / w).is_file() for w in _ADAPTER_WEIGHTS)


def holds_full_model(folder: Path) -> bool:
    """Whether a folder holds weights of a whole model and its config."""
    if not (folder / "config.json").is_file():
        return False
    return any(
        f.name not in _ADAPTER_WEIGHTS and (f.suffix in (".safetensors", ".bin") or f.name.endswith(".index.json"))
        for f in folder.iterdir()
        if f.name.startswith(("model", "pytorch_model"))
    )


def write_run_of_weights(
    folder: Path, run: str | None, step: int, files: Mapping[str, tuple[int, str]] | None = None
) -> None:
    """Records the run that the weights in a run directory belong to.

    Args:
        files: name, size and hash of every file of weights.
    """
    content = {"run": run, "step": step, "files": files or {}}
    write_whole(folder / WEIGHTS_FILE, (json.dumps(content) + "\n").encode())


def run_of_weights(folder: Path) -> tuple[str | None, int] | None:
    """Run id and step of the weights in a run directory; None if no readable file names them."""
    content = read_object(folder / WEIGHTS_FILE)
    return (content["run"], content["step"]) if {"run", "step"} <= content.keys() else None


def files_of_weights(folder: Path) -> dict[str, tuple[int, str]]:
    """Name, size and hash of the weights' files in a run directory; empty if they are not recorded."""
    files = read_object(folder / WEIGHTS_FILE).get("files")
    listed = files.items() if isinstance(files, dict) else ()
    return {name: (one[0], str(one[1])) for name, one in listed if isinstance(one, list) and len(one) == 2}


def describe_folder(folder: Path, *, limit: int = 6) -> str:
    """The contents of a folder, for messages."""
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return "it holds " + ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _check_of_this_run(folder: Path) -> None:
    """Raises: ModelError if run.json in a folder belongs to another run than the weights next to it."""
    facts = run_facts(folder)
    own, outcome = facts.get("id"), facts.get("outcome")
    known = run_of_weights(folder)
    if not isinstance(own, str) or known is None or known[0] == own:
        return
    _check_not_being_written(folder)
    newer = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    if any(path.stat().st_mtime > (folder / WEIGHTS_FILE).stat().st_mtime for path in newer):
        return  # saved by other means since
    inner = [path for path in folder.glob("checkpoint-*") if holds_full_model(path) or is_adapter_folder(path)]
    fix = f"Name a checkpoint: {', '.join(map(str, sorted(inner)))}." if inner else "Let the run finish (--resume)."
    raise ModelError(
        f"{folder} holds a run that has not saved its weights (outcome: {outcome}); the weights next to its run.json "
        f"are of another run. {fix}"
    )


def _check_not_being_written(folder: Path) -> None:
    """Raises: ModelError if another process is still writing this run."""
    writer = writer_of(folder)
    if writer is None:
        return
    inner = [path for path in folder.glob("checkpoint-*") if holds_full_model(path) or is_adapter_folder(path)]
    newest = max(inner, key=lambda path: path.stat().st_mtime, default=None)
    fix = f"name a checkpoint, the newest being {newest}" if newest else "name a checkpoint once it has saved one"
    raise ModelError(
        f"{folder} is a run that is still being written ({writer}), so its final weights are not there yet. Wait until "
        f"it has ended, or {fix}."
    )


def _locate_folder(folder: Path) -> Location:
    _check_of_this_run(folder)
    check_configs(folder)
    if holds_full_model(folder):
        return Location("folder", str(folder))
    if is_adapter_folder(folder):
        return Location("adapter", str(folder))
    _check_not_being_written(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder} has {ADAPTER_CONFIG} but no {_ADAPTER_WEIGHTS[0]} ({describe_folder(folder)}): the adapter was "
            "not saved completely. Use another checkpoint."
        )
    if (folder / WEIGHTS_OF_RANKS).is_dir():
        raise ModelError(
            f"{folder} is a checkpoint of which each rank wrote its part of the weights, so only training continues "
            f"from it. Continue the run to its end, which saves whole weights (--resume {folder}), or train with "
            "state_dict_type FULL_STATE_DICT in fsdp_config."
        )
    if (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has config.json but no weights ({describe_folder(folder)}): the model was not saved or "
            "downloaded completely. Save it again with save_pretrained, or use the hub id."
        )
    packed = sorted(folder.glob("*.gguf"))
    if len(packed) == 1:
        return Location("gguf", str(packed[0]))
    inner = sorted(
        child.name
        for child in folder.iterdir()
        if child.is_dir() and (holds_full_model(child) or is_adapter_folder(child))
    )
    if packed:
        fix = f"Name one of its GGUF files: {', '.join(p.name for p in packed[:5])}."
    elif inner:
        fix = f"Did you mean one of its folders: {', '.join(str(folder / n) for n in inner[:5])}?"
    else:
        fix = "Give the folder that save_pretrained wrote."
    raise ModelError(f"{folder} has no config.json ({describe_folder(folder)}), so it is not a model. {fix}")


def _near_folders(path: Path) -> str:
    """A sentence with near names: from the deepest folder on the path that exists."""
    missing, parent = path.name, path.parent
    while not parent.is_dir() and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    if not parent.is_dir():
        return ""
    last = missing == path.name  # a folder on the way to a model need not be one
    candidates = [
        e.name for e in parent.iterdir() if e.suffix == ".gguf" or (e.is_dir() and (not last or _is_model(e)))
    ]
    near = difflib.get_close_matches(missing, candidates, n=3, cutoff=0.5)
    rest = path.relative_to(parent).parts[1:]
    if not near:
        return f" ({parent.resolve()} exists, but nothing in it has a similar name.)"
    return f" Did you mean {' or '.join(str(Path(parent, name, *rest)) for name in near)}?"


def _is_model(folder: Path) -> bool:
    """Whether a folder may be named as a model: it, or a folder in it, has a model's configuration."""
    names = ("config.json", ADAPTER_CONFIG, "run.json")
    return any((folder / name).is_file() for name in names) or any(folder.glob("*/config.json"))


def _locate_on_hub(name: str, revision: str | None) -> Location:
    cached = _cached_kind(name, revision)
    answer = _ask_hub(name, revision, int(time.monotonic() / _ASK_AGAIN_S))
    if answer.found is not None:
        return Location(answer.found, name)
    if answer.unreachable and cached is not None:
        return Location(cached, name, local_files_only=True)
    near_folders = _near_folders(Path(name))
    local = near_folders if "Did you mean" in near_folders else ""
    if answer.unreachable:
        likely = _near_known(name)
        known = f" Did you mean {' or '.join(likely)}?" if likely else ""
        raise ModelError(
            f"There is no local folder {name}, it is not in this machine's Hugging Face cache, and the hub could not "
            f"be reached ({answer.unreachable.why}).{local}{known} {answer.unreachable.fix}, or copy the "
            "model's folder here and give its path."
        )
    if answer.no_revision:
        raise ModelError(
            f"{name} on the hub has no revision {revision!r}. Leave revision out, or name a branch, tag or commit."
        )
    near = list(dict.fromkeys([*_near_known(name), *_near_on_hub(name)]))[:3]
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ModelError(
        f"There is no model {name} on the hub, or it is private and you are not logged in (`hf auth login`), "
        f"and no local folder of that name.{local}{guess}"
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    found: Literal["hub", "hub-adapter"] | None = None
    unreachable: Unreachable | None = None
    no_revision: bool = False


@lru_cache(maxsize=64)
def _ask_hub(name: str, revision: str | None, _minute: int) -> _Answer:
    """Ask the hub once a minute at most: model and tokenizer are looked up one after the other."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_S)
    except errors.RevisionNotFoundError:
        return _Answer(no_revision=True)
    except errors.RepositoryNotFoundError:
        return _Answer()
    except errors.HFValidationError as error:
        raise ModelError(f"{name!r} is neither a path that exists nor a valid hub id ({error}).") from error
    except UnicodeEncodeError as error:  # of the header that the token is sent in, which the error would quote
        raise ModelError(
            "The token for the hub (HF_TOKEN, or that of `hf auth login`) holds a character outside ASCII, which no "
            "token has. Put the token alone there."
        ) from error
    except _network_errors() as error:
        return _Answer(unreachable=unreachable(error))
    files = {sibling.rfilename for sibling in info.siblings or ()}
    adapter = ADAPTER_CONFIG in files and "config.json" not in files
    return _Answer(found="hub-adapter" if adapter else "hub")


def _cached_kind(name: str, revision: str | None) -> Literal["hub", "hub-adapter"] | None:
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return "hub"
        if isinstance(try_to_load_from_cache(name, ADAPTER_CONFIG, revision=revision), str):
            return "hub-adapter"
    except errors.HFValidationError:
        pass
    return None


def _near_on_hub(name: str) -> list[str]:
    """Models on the hub with similar names. Its search finds substrings, and a typo affects only one part of the
    name.
    """
    from huggingface_hub import HfApi

    owner, _, short = name.rpartition("/")
    parts = [p for p in re.split(r"[-_.]", short) if len(p) > 2]
    found: dict[str, None] = {}
    try:
        # the whole short name, then its longest parts: a typing error is in one of them, not in all
        for query in dict.fromkeys([short, *sorted(parts, key=len, reverse=True)[:2]]):
            for info in HfApi().list_models(search=query, author=None, sort="downloads", limit=50):
                found[info.id] = None
        if owner:
            for info in HfApi().list_models(author=owner, sort="downloads", limit=100):
                found[info.id] = None
    except _network_errors():
        pass  # near names are optional; the error is reported anyway
    lower = {identifier.lower(): identifier for identifier in found}
    if owner:
        near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
        return [lower[n] for n in near]
    by_short = {identifier.rpartition("/")[2]: lower[identifier] for identifier in reversed(lower)}
    return [by_short[n] for n in difflib.get_close_matches(name.lower(), by_short, n=3, cutoff=0.6)]


def _near_known(name: str) -> list[str]:
    """The model of a tutorial that was probably meant; empty if the name is exactly one of them."""
    lower = {known.lower(): known for known in KNOWN}
    if name.lower() in lower:
        return []
    plain = re.sub(r"-(instruct|chat|it|hf)$", "", name.lower())
    if plain in lower:
        return [lower[plain]]
    return [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.85)]


def _network_errors() -> tuple[type[Exception], ...]:
    """The errors of the hub's client without a connection. HTTPError is that of the httpx that the client uses."""
    from huggingface_hub import errors

    http_error: Any = getattr(errors, "HTTPError", OSError)
    return (errors.OfflineModeIsEnabled, http_error, OSError)
