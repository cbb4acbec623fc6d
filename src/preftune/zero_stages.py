"""DeepSpeed's ZeRO stages in the words of FSDP2 (`--fsdp`), for recipes and programs that have a DeepSpeed config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = {0: "", 1: "shard_grad_op", 2: "shard_grad_op", 3: "full_shard"}
"""ZeRO-1 divides less than `shard_grad_op`, which costs no more communication. Stage 0 divides nothing."""


def as_fsdp(config: Any, folder: Path | None = None) -> str | None:
    """The value of `--fsdp` that does what a DeepSpeed config does; empty where it divides nothing.

    Args:
        config: a mapping, or the path of a JSON file with one. Of a file that is not there the name is read, as in
            `ds_z3_offload_config.json`.
        folder: to which a path is relative.
    Returns: None if the stage is not to be found.
    """
    if isinstance(config, str):
        config = _read(Path(folder or ".", config)) or _named(Path(config).stem.lower())
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if not isinstance(zero, Mapping) or stage not in WORDS:
        return None
    moved = [zero.get(f"offload_{what}") for what in ("optimizer", "param")]
    offload = any(isinstance(part, Mapping) and part.get("device") in ("cpu", "nvme") for part in moved)
    return " ".join(word for word in (WORDS[stage], "offload" if offload and WORDS[stage] else "") if word)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _named(name: str) -> dict[str, Any] | None:
    stage = re.search(r"(?:zero|stage|z)[_-]?([0-3])", name)
    if stage is None:
        return None
    offload = {"offload_param": {"device": "cpu"}} if "offload" in name else {}
    return {"zero_optimization": {"stage": int(stage[1]), **offload}}
