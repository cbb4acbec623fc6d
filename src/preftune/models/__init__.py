"""Loading, quantising, adapters and precision. Names are loaded on first use: the import brings no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.models.adapters import merge
    from preftune.models.gguf import convert_smollm2, demo_model
    from preftune.models.load import adapter_base, load_model, load_tokenizer
    from preftune.models.locate import is_adapter_folder
    from preftune.models.precision import Precision, apply_precision, decide_precision, weights_dtype

_HOME = {
    "Precision": "precision",
    "adapter_base": "adapters",
    "apply_precision": "precision",
    "convert_smollm2": "gguf",
    "decide_precision": "precision",
    "demo_model": "gguf",
    "is_adapter_folder": "adapters",
    "load_model": "load",
    "load_tokenizer": "load",
    "merge": "adapters",
    "weights_dtype": "precision",
}

__all__ = [
    "Precision",
    "adapter_base",
    "apply_precision",
    "convert_smollm2",
    "decide_precision",
    "demo_model",
    "is_adapter_folder",
    "load_model",
    "load_tokenizer",
    "merge",
    "weights_dtype",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'preftune.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"preftune.models.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
