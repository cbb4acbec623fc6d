"""A team without a cluster: Ray is replaced by a few functions."""

from __future__ import annotations

import ctypes
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from preftune.errors import PreftuneError, RequestError
from preftune.version import __version__
from preftune.workers.actor import Done
from preftune.workers.ray_pool import RayPool, RayTeam, passed_on


class RayError(Exception):
    """A worker was lost."""


class RayTaskError(RayError):
    """A worker's work has raised."""


class Ref:
    """A result of a worker."""

    def __init__(self, result: Done | None) -> None:
        self.result = result


class Worker:
    """Doubles numbers, or cannot start."""

    def __init__(self, *, starts: bool) -> None:
        self.prepare = SimpleNamespace(remote=lambda: Ref(Done(__version__, None, []) if starts else None))
        self.compute = SimpleNamespace(remote=lambda block: Ref(Done(2 * block, None, [])))


def received(ref: Ref) -> Done:
    if ref.result is None:
        raise RayError("no memory")
    return ref.result


def team_of(size: int, *, failing: int) -> RayTeam:
    """A team whose first workers cannot start."""
    left = [False] * failing

    def made(*_: Any) -> Worker:
        return Worker(starts=left.pop() if left else True)

    fake = SimpleNamespace(
        put=lambda build: build,
        remote=lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made)),
        wait=lambda refs, **_: (refs[:1], refs[1:]),
        get=received,
        kill=lambda actor: None,
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )
    return RayTeam(fake, lambda: lambda block: 2 * block, size=size, needs={})


def test_no_worker_starts_without_a_block() -> None:
    team = team_of(3, failing=0)
    assert list(team.compute([])) == []
    assert team._alive == []
    assert dict(team.compute(range(9))) == {number: 2 * number for number in range(9)}
    assert len(team._alive) == 3


@pytest.mark.parametrize(("size", "failing"), [(1, 4), (8, 8), (8, 39)])
def test_a_team_starts_although_some_starts_fail(size: int, failing: int) -> None:
    assert dict(team_of(size, failing=failing).compute(range(3))) == {0: 0, 1: 2, 2: 4}


@pytest.mark.parametrize(("size", "failing"), [(1, 5), (8, 40)])
def test_a_team_that_cannot_start_is_an_error(size: int, failing: int) -> None:
    with pytest.raises(PreftuneError, match="Workers cannot start: no memory"):
        list(team_of(size, failing=failing).compute(range(3)))


def test_workers_get_a_key_with_the_address_of_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "HF_HOME")
    for name in names:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SECRET", "x")
    assert set(names) <= passed_on().keys()
    assert "SECRET" not in passed_on()


def test_a_cluster_that_ended_leaves_sigterm_as_it_was(monkeypatch):
    """Ray replaces Python's handler, and at the end the system's, of which Python knows nothing."""
    libc = ctypes.CDLL(None)

    def refuse(**options: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))
        raise ConnectionError("nothing there")

    fake = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM)),
        shutdown=lambda: libc.signal(signal.SIGTERM, ctypes.c_void_p(0)),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with RayPool(workers=1):
            pass
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(fake, "init", refuse)
        with pytest.raises(RequestError, match="no Ray cluster"):
            RayPool(workers=1)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] * 2
