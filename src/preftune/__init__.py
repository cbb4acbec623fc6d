"""preftune: preference pairs in, an aligned model out, and honest evidence of whether it got better.

Names are loaded on first use, so that `import preftune` stays quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from preftune.version import __version__

if TYPE_CHECKING:
    from preftune.data import load_pairs
    from preftune.errors import PreftuneError
    from preftune.models import load_model, load_tokenizer, merge
    from preftune.training import DPOConfig, DPOTrainer

_HOME = {
    "DPOConfig": "preftune.training",
    "DPOTrainer": "preftune.training",
    "PreftuneError": "preftune.errors",
    "load_model": "preftune.models",
    "load_pairs": "preftune.data",
    "load_tokenizer": "preftune.models",
    "merge": "preftune.models",
}

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "PreftuneError",
    "__version__",
    "load_model",
    "load_pairs",
    "load_tokenizer",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
