"""Checks of a model's files: torn files, and configs that request millions of layers, give an error before anything is
built.
"""

from __future__ import annotations

import errno
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from preftune.bounds import bound, raising, size
from preftune.errors import CheckpointError, ModelError, PreftuneError, sentence
from preftune.log import warn
from preftune.models.config_values import check_values
from preftune.storage.file_hashes import DamagedError, check_files
from preftune.storage.jsonl import read_object

WEIGHTS_FILE = "preftune_weights.json"
"""In a run directory: the run, the step and the files of the final weights."""
MANIFEST = "preftune_manifest.json"
"""In a checkpoint: its run, its step and all its files."""
WEIGHTS = re.compile(r"(adapter_model|model|pytorch_model|prompt_encoder)([-.].*)?\.(safetensors|bin)(\.index\.json)?")
"""Names of the files of a model's weights."""


@contextmanager
def whole_weights(name: str) -> Iterator[None]:
    """A context for reading the weights of a model or an adapter. Raises: ModelError for a damaged file."""
    check_weights(Path(name))
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"The weights in {name} are damaged or were copied in part ({error}). Copy or download them again, or name "
            "another checkpoint."
        ) from error


_COMPARED: set[tuple[str, int, int]] = set()
"""Path, bytes and time of the files that were read and are what was written."""


def check_weights(folder: Path) -> None:
    """Compares weights with the sizes and hashes that a run or a checkpoint of preftune recorded for them; weights that
    were written after the record are used with a warning.

    Raises: ModelError for weights that changed although their time is that of the record, or an earlier one.
    """
    record = next((folder / name for name in (WEIGHTS_FILE, MANIFEST) if (folder / name).is_file()), None)
    listed = read_object(record).get("files") if record is not None else None
    if record is None or not isinstance(listed, dict):
        return
    for name, known in listed.items():
        path = folder / name
        if not (
            isinstance(known, list)
            and len(known) == 2
            and type(known[0]) is int
            and WEIGHTS.fullmatch(name)
            and path.is_file()
        ):
            continue
        state = path.stat()
        key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
        if key in _COMPARED:
            continue
        try:
            check_files(folder, {name: (known[0], str(known[1]))})
        except DamagedError as error:
            if state.st_mtime <= record.stat().st_mtime:
                raise ModelError(
                    f"The weights in {folder} are damaged or another model's: {error}. Copy them again, or name "
                    f"another checkpoint. To use them as they are, remove {record}."
                ) from error
            warn(
                f"the weights in {folder} are not those that the training saved ({error}): they were changed later. "
                f"They are used as they are. If that was not intended, copy them again; otherwise remove {record}."
            )
        _COMPARED.add(key)


def free_folder(folder: Path) -> Path:
    """The folder itself, if a model can be written to it. Raises: ModelError if it is in use or cannot be written."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ModelError(f"{folder} is already in use. Choose an empty or new folder, or remove it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-"):
            return folder
    except OSError as error:
        raise ModelError(f"{folder} cannot be written ({error.strerror}). Choose another folder.") from error


_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class _NotWrittenError(CheckpointError):
    """Files of a model could not be written: `reason` is the cause alone."""

    def __init__(self, folder: str, reason: str, advice: str) -> None:
        super().__init__(f"The model could not be written to {folder} ({reason}). Make room on the disk. {advice}")
        self.reason = reason


@contextmanager
def writing(folder: str, advice: str) -> Iterator[None]:
    """A context for writing the files of a model. safetensors and torch do not report a full disk as an OSError.

    Where one is inside another, as an export that merges into its own temporary folder, the outer one knows the folder
    and the command of the user.

    Args:
        advice: what to do after making room.
    Raises: CheckpointError for a disk that is full, failing, or read-only.
    """
    try:
        yield
    except _NotWrittenError as error:
        raise _NotWrittenError(folder, error.reason, advice) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        failed = error.errno in _DISK if isinstance(error, OSError) else False
        if failed or any(words in str(error) for words in ("I/O error", "inline_container", "file write failed")):
            # its own text may name a file in a temporary folder that no longer exists
            known = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise _NotWrittenError(folder, " ".join(known.split()), advice) from error
        raise


@contextmanager
def reading(file: str) -> Iterator[None]:
    """A context for a library that builds something from a file: a value of a wrong type fails there with any error.

    Raises: ModelError that names the file. What may have other causes passes: a missing file or package, a lack of
        memory, a ValueError.
    """
    try:
        yield
    except (PreftuneError, SafetensorError, OSError, ImportError, MemoryError, ValueError, KeyError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise
        raise ModelError(
            f"{file} holds a value that cannot be used: {brief(error)} Correct it, or copy the file again from its "
            "source."
        ) from error


_SAYS_LITTLE = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError)


def brief(error: BaseException) -> str:
    """The first paragraph of a message, on one line, ending with a full stop."""
    text = " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
    if isinstance(error, _SAYS_LITTLE):
        text = f"{type(error).__name__}: {text}"
    return sentence(text if len(text) <= 400 else text[:400] + " ...")


ADAPTER_CONFIG = "adapter_config.json"
CONFIGS = (
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def check_configs(folder: Path) -> None:
    """Checks config files: transformers silently ignores a generation config that it cannot read, and fails on one that
    is not an object, or on values of a wrong type.

    Raises: ModelError for a file of `CONFIGS` that holds no JSON object, holds values of a wrong type, or cannot be
        read.
    """
    for file in (folder / name for name in CONFIGS):
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if not isinstance(content, dict):
                raise ValueError("it does not hold an object")
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}. Check its permissions.") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{file} is damaged or was copied in part ({error}). Copy or download it again, or name another "
                "checkpoint."
            ) from error
        check_values(str(file), content)


_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_experts", "num_local_experts")


def check_config_size(folder: Path) -> None:
    """Raises: ModelError for a config.json that is too large, or asks for too many layers or experts."""
    file = folder / "config.json"
    if not file.is_file():
        return
    if file.stat().st_size > bound("config"):
        raise ModelError(
            f"{file} has {size(file.stat().st_size)}, but no model's configuration has more than "
            f"{size(bound('config'))}. Check the folder; {raising('config', '1GB')}."
        )
    for name, value in _numbers(read_object(file)):  # of what cannot be read, transformers says what is wrong
        if name in _LAYERS and value > bound("layers"):
            raise ModelError(
                f"{file} requests {name}={value:,}, more than {bound('layers'):,.0f}. Check the file; "
                f"{raising('layers', '100000')}."
            )


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a configuration and of those inside it."""
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((inner, number) for inner, number in value.items() if type(number) in (int, float))
