"""A script run as two processes of one training, over gloo on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-4,  # a gradient that is nothing but rounding must not become a whole step
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}
"""Of runs whose updates are compared between numbers of ranks."""
OVER_GLOO = {"ddp_backend": "gloo", "ddp_timeout": 60}


def leave(folder: Path, result: Any) -> None:
    """Ends a rank, whose result `run_two_ranks` returns."""
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


def cases_of(request: pytest.FixtureRequest, name: str = "case") -> set[str]:
    """The values of this parameter in all tests of this file that are going to run."""
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return {call.params[name] for call in calls if name in call.params}


def run_two_ranks(
    script: str | None, folder: Path, *, cache: Path | None = None, cases: Collection[str] = ()
) -> list[Any]:
    """Runs a script on two ranks, with `folder` and the names of cases as its arguments; returns what each left in
    `rankN.pt`.
    """
    assert script is not None
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "PREFTUNE_CACHE": str(cache or folder / "cache")}
    words = [sys.executable, Path(__file__).with_name("forked_ranks.py"), script, folder, *cases]
    process = subprocess.Popen(
        list(map(str, words)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-6000:]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
