"""From a run to a model that is served: exports, and the proof that what is served is what was aligned.

`exports` writes artefacts, each with a manifest and a card; `verification` compares one with its run. Names are loaded
on first use: the import brings no torch.

    artefact      the manifest of an exported model
    card          its README.md
    distances     how far a served model is from the trained one, and what that means
    exports       runs to whole models, adapters, GGUF files, Ollama
    files         faults that are seen in the files of an artefact
    gguf          llama.cpp's converter, quantiser and server
    hub           uploads an artefact to the hub
    ollama        Modelfiles, written and compared
    server        a run behind an OpenAI-compatible address
    served        what is asked of a served model; a model of transformers that answers
    served_http   a model behind an address
    text_faults   vocabulary, chat template and end tokens
    trained       the trained model and its base, asked once for several artefacts
    verification  whether what is served is what was aligned
    win_rates     win rates against the base, by a judge
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.deploy.artefact import Manifest, read_manifest
    from preftune.deploy.exports import Exported, Target, export
    from preftune.deploy.hub import push
    from preftune.deploy.served_http import ServedEndpoint
    from preftune.deploy.server import serving
    from preftune.deploy.trained import Questions, Trained, questions_of
    from preftune.deploy.verification import Verification, verify
    from preftune.deploy.win_rates import Judging

_HOME = {
    name: module
    for module, names in {
        "artefact": "Manifest read_manifest",
        "exports": "Exported Target export",
        "hub": "push",
        "served_http": "ServedEndpoint",
        "server": "serving",
        "trained": "Questions Trained questions_of",
        "verification": "Verification verify",
        "win_rates": "Judging",
    }.items()
    for name in names.split()
}

__all__ = [
    "Exported",
    "Judging",
    "Manifest",
    "Questions",
    "ServedEndpoint",
    "Target",
    "Trained",
    "Verification",
    "export",
    "push",
    "questions_of",
    "read_manifest",
    "serving",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'preftune.deploy' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"preftune.deploy.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
