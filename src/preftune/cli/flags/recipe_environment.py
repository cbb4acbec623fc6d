"""What a recipe's `env:` block may set. A recipe comes from elsewhere more often than a command line does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from preftune.errors import RequestError
from preftune.log import warn
from preftune.secret_values import is_secret

FLAG = "--allow_env"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOVES = re.compile(
    r"(.*_)?(ENDPOINT|URL|URI|HOST|SERVER|PROXY|API_BASE)(_.*)?"  # where requests go, and the tokens in them
    r"|.*(CA_BUNDLE|CERT_FILE|CERT_DIR|SSL).*"  # whose certificates are believed
    r"|LD_.*|DYLD_.*|.*_(PRELOAD|PLUGIN|LIBRARY_PATH)"  # libraries that are loaded
    r"|PATH|PYTHON.*|HOME|SHELL|BASH_ENV|ENV|IFS|CC|CXX|GIT_.*|CUDA_HOME|TORCH_EXTENSIONS_DIR|TRITON_.*"  # programs
    r"|HF_HOME|HF_TOKEN_PATH|HF_MODULES_CACHE|HF_ASSETS_CACHE|XDG_.*",  # tokens that are read, code that is kept
    re.IGNORECASE,
)
_HARMLESS = ("MASTER_PORT",)


def set_environment(values: Mapping[str, str], *, recipe: str, allowed: bool) -> None:
    """Set the variables of a recipe, and say which.

    Args:
        allowed: the command line accepts variables that decide where tokens are sent or which code is loaded.
    Raises:
        RequestError: a name or a value that no variable can have, or one that needs the flag.
    """
    for name, value in values.items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise RequestError(
                f"--config {recipe}: env: {name!r} cannot be set: a name is letters, digits and underscores, and a "
                "value has no NUL. Remove it."
            )
    moved = [name for name in values if _MOVES.fullmatch(name) and name not in _HARMLESS]
    if moved and not allowed:
        raise RequestError(
            f"--config {recipe}: env: {', '.join(moved)} would decide where tokens are sent or which programs and "
            f"libraries are loaded. Remove it, or accept what the recipe sets with {FLAG}."
        )
    if values:
        shown = ", ".join(f"{name}={'***' if is_secret(name) else value}" for name, value in values.items())
        warn(f"{recipe} sets in the environment: {shown}")
        os.environ.update(values)
