"""Every test runs offline, with its own cache folder, on two threads, and leaves the global random state alone."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request) -> None:
    """A cache folder of its own for every test, unless it is marked slow: the real model is converted once a run."""
    if request.node.get_closest_marker("slow"):
        folder = tmp_path_factory.getbasetemp() / "shared_cache"
    else:
        folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PREFTUNE_CACHE", str(os.environ.get("PREFTUNE_TEST_CACHE") or folder))


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return tmp_path / "run"
