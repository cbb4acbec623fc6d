"""A YAML recipe as if its values had been typed on the command line.

Scalars are kept as they are written (`5e-7`, `no`, `on`): the field's own type decides what they mean, as with flags.
YAML itself would read `5e-7` as text and `eval_strategy: no` as false.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import RequestError
from preftune.log import warn
from preftune.secret_values import is_secret


class _AsWritten(yaml.SafeLoader):
    """Reads mappings, sequences, null and text; no numbers, booleans or dates."""


_AsWritten.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Typed(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 and people write them (1e-6), `None` as null; no dates, and no times as numbers."""


_Typed.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge", ":bool"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = (
    r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)|\d[\d_]*\.\d*|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_Typed.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT})$"), list("-+.0123456789"))
_Typed.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Typed.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


_MOST_VALUES = 1_000_000
"""Values that a recipe can hold with its aliases written out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One top-level line of a recipe."""

    key: str
    line: int
    value: str | list[str] | dict[str, Any] | None
    """Text as written, a list of such, a mapping with YAML's own types, or null."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The content of one YAML file, in its order."""

    path: Path
    entries: tuple[Entry, ...]
    environment: dict[str, str]
    """TRL's `env:` block."""


def find_recipe(argv: Sequence[str]) -> Recipe | None:
    """The recipe that `--config` names."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, _ = finder.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise RequestError("--config needs the name of a YAML file after it.") from error
    if any(not name.strip() for name in found.config):
        raise RequestError("--config is empty. Name a file.")
    if len(found.config) > 1:
        raise RequestError(f"--config is given {len(found.config)} times. Give one recipe; flags override its values.")
    return read_recipe(found.config[0]) if found.config else None


def read_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Raises: RequestError: no such file, not YAML (with the line), not a mapping, or a repeated key.
    """
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise RequestError(f"The recipe {name} is a folder. Name the YAML file in it.") from None
    except UnicodeDecodeError:
        raise RequestError(f"The recipe {name} is not text in UTF-8, so it is not a YAML recipe.") from None
    except OSError as error:
        raise RequestError(f"The recipe {name} cannot be read: {error.strerror}. Check the path.") from None
    try:
        root = yaml.compose(text, Loader=_AsWritten)
        if root is not None:
            _check_aliases(name, root, {})
        written = yaml.load(text, Loader=_AsWritten)
        typed = yaml.load(text, Loader=_Typed)
    except yaml.YAMLError as error:
        raise RequestError(_broken(name, error)) from None
    except RequestError:
        raise
    except ValueError as error:  # 0128 is octal in YAML
        raise RequestError(
            f"The recipe {name}: a value cannot be read as YAML reads it ({error}). Put it in quotes, or write a "
            "number without a zero in front."
        ) from None
    except RecursionError:
        raise RequestError(f"The recipe {name} is nested too deeply. A recipe has 'key: value' lines.") from None
    if not isinstance(root, yaml.MappingNode) or not isinstance(written, dict):
        raise RequestError(f"The recipe {name} holds no 'key: value' lines. Write for example 'beta: 0.1', one a line.")
    environment = typed.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise RequestError(f"The recipe {name}: env must hold 'NAME: value' lines.")
    entries = tuple(_entries(name, root, written, typed))
    return Recipe(path, entries, {str(key): str(value) for key, value in environment.items()})


def typed_values(name: str) -> dict[str, Any]:
    """The top-level keys of a YAML file, with numbers as people write them. Raises: RequestError, as `read_recipe`."""
    read_recipe(name)
    loaded: dict[str, Any] = yaml.load(Path(name).expanduser().read_text(encoding="utf-8-sig"), Loader=_Typed)
    return loaded


def _check_aliases(name: str, node: Any, sizes: dict[int, int]) -> int:
    """The number of values in a node when all aliases in it are written out.

    Args:
        sizes: this number of the nodes seen so far; 0 while a node is being counted.
    Raises: RequestError for an anchor that holds itself, or aliases that would fill the memory.
    """
    where = f"The recipe {name}, line {node.start_mark.line + 1}"
    if sizes.get(id(node)) == 0:
        raise RequestError(f"{where}: the value contains itself (an anchor & and its alias *). Write it out.")
    if id(node) not in sizes:
        sizes[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        size = 1 + sum(_check_aliases(name, part, sizes) for part in parts)
        if size > _MOST_VALUES:
            raise RequestError(
                f"{where}: the value holds more than {_MOST_VALUES:,} values when its aliases (*) are written out. "
                "Remove aliases of lists that hold aliases."
            )
        sizes[id(node)] = size
    return sizes[id(node)]


def _entries(name: str, root: yaml.MappingNode, written: dict[Any, Any], typed: dict[Any, Any]) -> Iterator[Entry]:
    lines: dict[str, int] = {}
    for key_node, _ in root.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in lines:
            where = f"The recipe {name}, line {line}"
            raise RequestError(f"{where}: {key} is already given in line {lines[key]}. Keep one.")
        lines[key] = line
    for key, value in written.items():
        if key == "env":
            continue
        if isinstance(value, dict):
            value = typed[key]
        elif isinstance(value, list):
            pairs = zip(value, typed[key], strict=True)
            value = [item if isinstance(item, str) else json.dumps(read) for item, read in pairs]
        yield Entry(str(key), lines.get(str(key), 1), value)


def _broken(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"The recipe {name}{where}: this is not YAML ({problem}). Check its indentation and quotes."


ALLOW_ENV = "--allow_env"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HARMLESS = re.compile(
    r"CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING)|CUBLAS_WORKSPACE_CONFIG|PYTORCH_(CUDA_)?ALLOC_CONF"  # devices
    r"|PYTORCH_ENABLE_MPS_FALLBACK|PYTORCH_MPS_(HIGH|LOW)_WATERMARK_RATIO|(TORCHDYNAMO|TORCH_COMPILE)_DISABLE"
    r"|(OMP|MKL|OPENBLAS|NUMEXPR)_NUM_THREADS|TOKENIZERS_PARALLELISM|RAYON_NUM_THREADS|PYTHONHASHSEED"  # threads
    r"|NCCL_(DEBUG|DEBUG_SUBSYS|TIMEOUT|ASYNC_ERROR_HANDLING|BLOCKING_WAIT|SOCKET_IFNAME|P2P_LEVEL|IB_HCA|ALGO|PROTO)"
    r"|NCCL_(P2P|IB|SHM|NVLS|CUMEM)_(DISABLE|ENABLE)|GLOO_SOCKET_IFNAME|MASTER_PORT"  # between ranks
    r"|TORCH_NCCL_(ASYNC_ERROR_HANDLING|BLOCKING_WAIT|AVOID_RECORD_STREAMS|HEARTBEAT_TIMEOUT_SEC)"
    r"|(TRANSFORMERS|DATASETS|HF_HUB|HF_DATASETS)_(OFFLINE|VERBOSITY|IN_MEMORY_MAX_SIZE)"  # downloads and messages
    r"|HF_HUB_(ENABLE_HF_TRANSFER|DISABLE_(PROGRESS_BARS|TELEMETRY|XET|SYMLINKS_WARNING)|(DOWNLOAD|ETAG)_TIMEOUT)"
    r"|HF_XET_HIGH_PERFORMANCE|DO_NOT_TRACK|ACCELERATE_LOG_LEVEL|TF_CPP_MIN_LOG_LEVEL|TQDM_DISABLE|NO_COLOR|FORCE_COLOR"
    r"|TRANSFORMERS_NO_ADVISORY_WARNINGS|(HIP|ROCR)_VISIBLE_DEVICES|PYTORCH_HIP_ALLOC_CONF|NVIDIA_TF32_OVERRIDE"
    r"|CUDA_DEVICE_MAX_CONNECTIONS|NCCL_IB_(GID_INDEX|TIMEOUT)|NCCL_NET_GDR_LEVEL|TORCH_DISTRIBUTED_DEBUG|KMP_AFFINITY"
    r"|WANDB_(PROJECT|ENTITY|NAME|RUN_GROUP|RUN_ID|JOB_TYPE|TAGS|NOTES|MODE|DISABLED|SILENT|WATCH|RESUME)"
    r"|MLFLOW_(EXPERIMENT_NAME|RUN_NAME|TAGS)|COMET_(PROJECT_NAME|MODE)|TRACKIO_PROJECT"  # runs
)
"""Settings that neither send anything elsewhere nor load code. All others need the flag: a list of those that do could
not be complete."""


def set_environment(values: Mapping[str, str], *, recipe: str, allowed: bool) -> None:
    """Sets the environment variables of a recipe, and logs which.

    Args:
        allowed: the command line accepts variables that are not known to be harmless.
    Raises:
        RequestError: a name or a value that no variable can have, or one that needs the flag.
    """
    for name, value in values.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise RequestError(
                f"The recipe {recipe}: env: {name!r} cannot be set: a name is letters, digits and underscores, and a "
                "value has no NUL. Remove it."
            )
    others = [name for name in values if not _HARMLESS.fullmatch(name)]
    if others and not allowed:
        raise RequestError(
            f"The recipe {recipe}: env: {', '.join(others)} may decide where tokens and results are sent or which code "
            "is loaded: only settings of devices, threads, logging and trackers that are known to be harmless are set. "
            f"Remove it, or accept the recipe's variables with {ALLOW_ENV}."
        )
    if values:
        shown = ", ".join(f"{name}={'***' if is_secret(name) else value}" for name, value in values.items())
        warn(f"{recipe} sets in the environment: {shown}")
        os.environ.update(values)
