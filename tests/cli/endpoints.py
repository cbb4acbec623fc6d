"""What the tests of commands that ask an endpoint share: no proxy, no key, and a child that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.generation.chat_server import ChatServer


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def kill_when(reached: Callable[[], bool], words: list[str], server: ChatServer) -> None:
    """Runs `preftune` as a process and ends it with SIGKILL as soon as that is true; waits for the server's answers."""
    child = subprocess.Popen([sys.executable, "-m", "preftune.cli.main", *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not reached() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    while server.at_once:  # what was under way when it died
        time.sleep(0.01)
