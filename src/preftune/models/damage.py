"""Files of a model that are torn or were changed: an error that names them instead of the library's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from preftune.errors import ModelError


@contextmanager
def whole_weights(name: str) -> Iterator[None]:
    """Inside, the weights of a model or an adapter are read. Raises: ModelError for a file that is damaged."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"The weights in {name} are damaged or were copied in part ({error}). Copy or download them again, or name "
            "another checkpoint."
        ) from error


CONFIGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def check_configs(folder: Path) -> None:
    """Transformers passes over a generation config that it cannot read, and trips over one that is no object.

    Raises: ModelError for a file of `CONFIGS` that holds no JSON object, or cannot be read.
    """
    for file in (folder / name for name in CONFIGS):
        try:
            if file.is_file() and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                raise ValueError("it holds no object")
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}. Check its permissions.") from error
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{file} is damaged or was copied in part ({error}). Copy or download it again, or name another "
                "checkpoint."
            ) from error
