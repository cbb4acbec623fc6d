"""What every result file says of where it comes from and whether it is of the same work, and how it is written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("preftune", "trl", "torch", "transformers", "peft", "accelerate", "python", "system")


def provenance(command: str) -> dict[str, Any]:
    """Machine, versions, date, and the command that measures it again. No path and no name of this machine."""
    from preftune.cli.commands.env import environment

    facts = environment()
    hardware = dict(facts["hardware"])
    hardware["memory_gb"] = round((hardware.pop("memory_bytes") or 0) / 1e9, 1)
    hardware["cpu bfloat16"] = facts["precision"]["cpu bfloat16"]
    return {
        "machine": hardware,
        "versions": {name: facts["versions"][name] for name in _VERSIONS},
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
    }


def write_result(result: dict[str, Any], folder: Path, name: str) -> Path:
    """Keep a result as `folder/name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"kept as {file.name}", flush=True)
    return file


def largest_loss_difference(runs: Sequence[dict[str, Any]]) -> float:
    """Between any two runs, over all steps: how sure we are that they did the same work."""
    return max(max(step) - min(step) for step in zip(*(run["losses"] for run in runs), strict=True))


def rounded(value: Any, digits: int = 4) -> Any:
    """Floats of a nested structure to so many significant digits, so that files can be read."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return value
