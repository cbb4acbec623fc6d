"""A Ray cluster as a pool: teams of actors, of which any may be lost at any time."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from preftune import errors
from preftune.amounts import counted
from preftune.errors import PreftuneError, RequestError
from preftune.log import warn
from preftune.version import __version__
from preftune.workers.actor import Actor, Done
from preftune.workers.team import Build

_AHEAD = 2
"""Blocks that a worker has at a time, so that it does not wait for the next one."""
_MOST_LOST = 5
"""How many workers may be lost with one block, or for each worker of the team while they start, before the work is
given up.
"""
_PATIENCE = 60.0
"""Seconds without any worker before that is said."""
_PASSED_ON = ("PREFTUNE_", "HF_", "OPENAI_", "WANDB_", "MLFLOW_")
"""Beginnings of the names of variables that workers get: a key with the address of its server."""


class RayPool:
    """A Ray cluster: one that runs, or one that is started on this machine and ends with the pool."""

    def __init__(self, address: str = "", *, workers: int | None = None, shows_output: bool = False) -> None:
        """
        Args:
            address: HOST:PORT of a cluster, or ray://HOST:PORT; empty: $RAY_ADDRESS, a cluster that runs on this
                machine, or a new one on it.
            workers: number of workers; default: one for each GPU, or without any for each CPU.
            shows_output: whether what workers print is printed here.
        Raises: RequestError without Ray, or without a cluster at the address.
        """
        try:
            import ray
        except ImportError:
            raise RequestError("--ray needs Ray. Install it with: pip install 'preftune[ray]'") from None
        if workers is not None and workers < 1:
            raise RequestError(f"--ray_workers {workers}: give 1 or more.")
        self._ray: Any = ray
        self._workers = workers
        self._ours = not ray.is_initialized()
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        if self._ours:
            try:
                _connect(address, shows_output=shows_output)
            except RequestError:
                self.close()
                raise

    def team(self, build: Build, *, gpu: bool) -> RayTeam:
        there = self._ray.cluster_resources()
        cards, cores = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        room = cards if gpu and cards else cores
        size = self._workers or max(1, room)
        if size > room:
            warn(f"The cluster has room for {counted(room, 'worker')}, and {size} are asked for: the others wait.")
        needs: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 if gpu and cards else 0, "max_restarts": 0}
        return RayTeam(self._ray, build, size=size, needs=needs)

    def close(self) -> None:
        """Ends what was started. Ray takes SIGTERM over and at the end leaves it to the system, which kills the process
        whatever handler Python knows: the one from before is set again.
        """
        if not self._ours:
            return
        self._ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm or signal.SIG_DFL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def passed_on() -> dict[str, str]:
    """The variables of this process that workers get."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def _connect(address: str, *, shows_output: bool) -> None:
    """Connects to a cluster, or starts one on this machine (see `RayPool`).

    Raises: RequestError if there is no cluster at the address.
    """
    import logging

    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": shows_output, "logging_level": logging.ERROR}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address or "auto", **options)
        else:
            ray.init(include_dashboard=False, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise RequestError(
            f"There is no Ray cluster to use at {where} ({' '.join(str(error).split())[:200]}). Start one with ray "
            "start --head, give its address with --ray HOST:PORT, or --ray alone for one on this machine."
        ) from error


class _Under(NamedTuple):
    """A block that a worker has."""

    number: int
    block: Any
    actor: Any


class RayTeam:
    """Actors that have done the same preparation; one that is lost is replaced. They start with the first block, and
    again after `close`.
    """

    def __init__(self, ray: Any, build: Build, *, size: int, needs: dict[str, Any]) -> None:
        self._ray, self._build = ray, ray.put(build)
        self._environment = passed_on()
        self._class = ray.remote(Actor).options(**needs)
        self._starting: dict[Any, Any] = {}
        self._free: deque[Any] = deque()
        """An actor is in it once for each block that it can take."""
        self._alive: list[Any] = []
        self._lost = 0
        self._said: set[str] = set()
        self._size = size

    def _start(self) -> None:
        actor = self._class.remote(self._build, os.getcwd(), self._environment)
        self._alive.append(actor)
        self._starting[actor.prepare.remote()] = actor

    def compute(self, blocks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        new = enumerate(blocks)
        if (first := next(new, None)) is None:
            return
        again = deque([first])
        under: dict[Any, _Under] = {}
        lost: Counter[int] = Counter()
        while len(self._alive) < self._size:
            self._start()
        while True:
            while self._free and (task := again.popleft() if again else next(new, None)) is not None:
                actor = self._free.popleft()
                under[actor.compute.remote(task[1])] = _Under(*task, actor)
            if not under and self._free:
                return
            for ref in self._next(under):
                if ref in self._starting:
                    self._begin(ref)
                    continue
                number, block, actor = under.pop(ref)
                try:
                    result = self._result(ref)
                except self._ray.exceptions.RayError as error:
                    self._replace(actor, error)
                    lost[number] += 1
                    if lost[number] == _MOST_LOST:
                        raise PreftuneError(
                            f"Block {number} of the rows was lost with its worker {_MOST_LOST} times "
                            f"({_said(error)}). The rows may need more memory than a worker has: use fewer workers "
                            "(--ray_workers)."
                        ) from error
                    behind = [other for other, task_under in under.items() if task_under.actor == actor]
                    again.extend([(number, block), *(under.pop(other)[:2] for other in behind)])
                    continue
                self._free.append(actor)
                yield number, result

    def _next(self, under: dict[Any, _Under]) -> list[Any]:
        """What has ended, of the first block of each worker: it computes them one after the other, and is lost with
        the first.
        """
        first = {task.actor: ref for ref, task in reversed(under.items())}
        waited_for = [*first.values(), *self._starting]
        done: list[Any]
        done, _ = self._ray.wait(waited_for, num_returns=1, timeout=_PATIENCE)
        if not done and not under:
            self._warn("No worker could start yet: the cluster has no free CPU or GPU. Waiting for one.")
        return done

    def _begin(self, ref: Any) -> None:
        """A worker has started, or could not."""
        actor = self._starting.pop(ref)
        try:
            version = self._result(ref)
        except self._ray.exceptions.RayError as error:
            self._lost += 1
            if self._lost == _MOST_LOST * self._size:
                raise PreftuneError(
                    f"Workers cannot start: {errors.sentence(_said(error))} Every node needs the same preftune and its "
                    "extras, and memory for the model."
                ) from error
            self._replace(actor, error)
            return
        if version != __version__:
            raise RequestError(
                f"A worker has preftune {version}, and this machine {__version__}. Install one version on every node."
            )
        self._lost = 0
        self._free.extend([actor] * _AHEAD)

    def _replace(self, actor: Any, error: BaseException) -> None:
        self._alive.remove(actor)
        with suppress(Exception):
            self._ray.kill(actor)
        self._free = deque(other for other in self._free if other != actor)
        warn(f"A worker was lost ({_said(error).rstrip('.')}). Another one does its work.")
        self._start()

    def _result(self, ref: Any) -> Any:
        """What a worker says. Raises: RayError if it was lost; else what its work raised."""
        try:
            done: Done = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise PreftuneError(f"A worker failed. {errors.sentence(_said(error))}") from error
        for line in done.warnings:
            self._warn(line)
        if done.failed is None:
            return done.result
        raise getattr(errors, done.failed, PreftuneError)(done.result)

    def _warn(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            warn(line)

    def close(self) -> None:
        for actor in self._alive:
            with suppress(Exception):
                self._ray.kill(actor)
        self._alive, self._free, self._starting = [], deque(), {}


def _said(error: BaseException) -> str:
    """What an error of Ray says: the cause at the end of a worker's traceback, or the first line."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return lines[-1 if any("ray::" in line for line in lines) else 0][:200]
