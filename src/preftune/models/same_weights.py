"""Checks whether the base weights of an adapter are those of the model in their name.

Merging an adapter or changing weights in memory does not change a model's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preftune.models.locate import Location

_MOST = 64
"""Maximum number of weights to compare; merging an adapter changes all layers."""


def changed_weight(model: Any, place: Location) -> str:
    """The name of a weight of the model, without its adapters, that differs from the one in the files of `place`.

    Empty if there is none. Weights that cannot be compared (quantised weights, other file formats, names that
    transformers changes while it loads) are skipped.

    Args:
        place: a folder, or a hub id that is on this machine.
    """
    ours = dict(_plain(model))
    found = [(name, file) for file in _files(place) for name in _names(file) if name in ours]
    step = max(1, -(-len(found) // _MOST))
    for name, file in found[::step]:
        theirs = _read(file, name)
        if theirs.shape == ours[name].shape and ours[name].is_floating_point() and _differ(ours[name], theirs):
            return name
    return ""


def _plain(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The base's parameters under their names without adapters."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, parameter in base.named_parameters():
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), parameter.detach()


def _files(place: Location) -> list[Path]:
    folder = Path(place.name)
    if place.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(place.name, "config.json")
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return sorted(opened.keys())


def _read(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        found: Tensor = opened.get_tensor(name)
    return found


def _differ(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two weights differ by more than the precision in which they were loaded or are kept."""
    mine = mine.cpu()
    loaded = (theirs.dtype, torch.bfloat16, torch.float16)
    return not any(torch.equal(theirs.to(dtype).to(mine.dtype), mine) for dtype in loaded)
