"""A look at a model's config.json before anything is built of it: ten million layers would be built for hours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preftune.bounds import bound, raising, size
from preftune.errors import ModelError

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_experts", "num_local_experts")


def check_config_size(folder: Path) -> None:
    """Raises: ModelError for a config.json that is too large, or asks for too many layers or experts."""
    file = folder / "config.json"
    if not file.is_file():
        return
    if file.stat().st_size > bound("config"):
        raise ModelError(
            f"{file} has {size(file.stat().st_size)}, and no model's configuration has more than "
            f"{size(bound('config'))}. Check the folder; {raising('config', '1GB')}."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it
    for name, value in _numbers(config):
        if name in _LAYERS and value > bound("layers"):
            raise ModelError(
                f"{file} asks for {name}={value:,}, more than {bound('layers'):,.0f}. Check the file; "
                f"{raising('layers', '100000')}."
            )


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a configuration and of those inside it."""
    for name, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((inner, number) for inner, number in value.items() if type(number) in (int, float))
