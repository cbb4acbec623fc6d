"""`preftune env`: the facts about this machine that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.train.dpo import METHOD
from preftune.storage.cache_folder import cache_folder
from preftune.version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "bitsandbytes",
    "gguf",
    "trl",
)


def run(argv: Sequence[str]) -> int:
    """Runs `preftune env` and returns its exit code."""
    parser = PlainParser(prog="preftune env", description="Print versions, hardware, number formats and disk space.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    asked = parser.read(argv)
    facts = environment()
    print(json.dumps(facts, indent=2) if asked.json else render(facts))
    return 0


def environment() -> dict[str, Any]:
    """Everything as plain values; sizes in bytes."""
    return {
        "versions": _versions(),
        "hardware": _hardware(),
        "precision": _precision(),
        "disk": _disk(),
        "settings": {
            name: os.environ[name]
            for name in ("PREFTUNE_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
            if name in os.environ
        },
    }


def render(facts: dict[str, Any]) -> str:
    """One `name: value` per line, in groups."""
    lines: list[str] = []
    for group, values in facts.items():
        if values:
            lines.append(group)
            lines += [f"  {name.removesuffix('_bytes'):<22}{_shown(name, value)}" for name, value in values.items()]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {"preftune": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _hardware() -> dict[str, Any]:
    import torch

    from preftune.plan.devices import usable_memory

    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "torch threads": torch.get_num_threads(),
        "memory_bytes": usable_memory(),
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            size = _gigabytes(card.total_memory)
            facts[f"gpu {index}"] = f"{card.name}, sm{card.major}{card.minor}, {size}"
    elif torch.backends.mps.is_available():
        facts["gpu 0"] = "Apple MPS"
    else:
        facts["gpu"] = "none that this torch can use"
    return facts


def _precision() -> dict[str, Any]:
    """The number formats of this machine, and the ones that the precision policy chooses for a model stored in bfloat16
    or float32.
    """
    import torch

    from preftune.models.precision import cpu_has_bf16, decide_precision

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    facts: dict[str, Any] = {"device": device}
    facts["cpu bfloat16"] = {True: "in hardware", False: "no", None: "unknown"}[cpu_has_bf16()]
    if cuda:
        facts["gpu bfloat16"] = "in hardware" if torch.cuda.get_device_capability() >= (8, 0) else "no"
        facts["gpu float16"] = "in hardware"
    for dtype in (torch.bfloat16, torch.float32):
        stored = str(dtype).removeprefix("torch.")
        facts[f"policy for {stored}"] = decide_precision(model_dtype=dtype, device=device).describe()
    return facts


def _disk() -> dict[str, Any]:
    from huggingface_hub import constants

    facts: dict[str, Any] = {}
    places = {
        "output": Path(METHOD.output_dir),
        "preftune cache": cache_folder(),
        "hub cache": Path(constants.HF_HUB_CACHE),
    }
    for name, place in places.items():
        facts[name] = str(place)
        facts[f"{name} free_bytes"] = shutil.disk_usage(_existing(place)).free
        if name != "output":
            facts[f"{name} used_bytes"] = _folder_size(place)
    return facts


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _folder_size(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue  # removed while we looked
    return total


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shown(name: str, value: Any) -> str:
    return _gigabytes(value) if name.endswith("_bytes") and value is not None else str(value)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
