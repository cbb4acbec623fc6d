"""From a run to a model that is served: exports, and the proof that what is served is what was aligned.

`export` writes artefacts, each with a manifest and a card. Names are loaded on first use: the import brings no torch.

    artefact      the manifest of an exported model
    card          its README.md
    chat_affixes  a chat template as the texts around every turn
    export        runs to whole models, adapters, GGUF files, Ollama
    gguf          llama.cpp's converter and quantiser
    ollama        Modelfiles
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.deploy.artefact import Manifest, read_manifest
    from preftune.deploy.export import Exported, Target, export

_HOME = {
    "Manifest": "artefact",
    "read_manifest": "artefact",
    "Exported": "export",
    "Target": "export",
    "export": "export",
}

__all__ = ["Exported", "Manifest", "Target", "export", "read_manifest"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'preftune.deploy' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"preftune.deploy.{_HOME[name]}"), name)
    globals()[name] = value
    return value
