"""Every test runs offline, with its own cache folder, and on one thread unless it is marked slow.

Tiny models gain nothing from a second thread, and threads that wait for each other are what ruins shared machines:
where there are several, they sleep while they wait.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gc
import itertools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import preftune  # noqa: F401 (before bitsandbytes, of whose loggers it silences one)

NUMBERS = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sample", action="store_true", help="of tests marked sample, run the chosen parameter sets only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--sample"):
        return
    sets_of: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            sets_of.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {item for sets in sets_of.values() for item in sets if item not in chosen(sets)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """The modules and tests are left to themselves by the collector, which transformers calls in every training: with
    them, that is half of the time of a small one.
    """
    gc.collect()
    gc.freeze()


def chosen(sets: list[pytest.Item]) -> list[pytest.Item]:
    """Of a test's parameter sets those that its mark names, or as many as it says, at equal distances."""
    wanted = sets[0].get_closest_marker("sample").args
    count, last = wanted[0], len(sets) - 1
    if isinstance(count, str):
        return [item for item in sets if item.callspec.id in wanted]
    return sets if count > last else [sets[round(at * last / max(1, count - 1))] for at in range(count)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is printed when it happens: a run that is stopped from outside prints no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})", file=sys.stderr, flush=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request) -> None:
    """A cache folder of its own for every test, unless it is marked slow: the real model is converted once a run."""
    name = "shared" if request.node.get_closest_marker("slow") else str(next(NUMBERS))
    folder = tmp_path_factory.getbasetemp() / "caches" / name  # mktemp looks through all folders for the next number
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("PREFTUNE_CACHE", str(os.environ.get("PREFTUNE_TEST_CACHE") or folder))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no key of the machine gets between a test and its own server."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COLUMNS", raising=False)  # some libraries set it


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """All cores for tests with the real model."""
    if request.node.get_closest_marker("slow") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A handler that a test leaves behind would end or change the tests after it."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    assert {number: signal.getsignal(number) for number in numbers} == before


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_no_garbage() -> None:
    """accelerate collects garbage after every training, and would look through all that was imported, and through what
    earlier files left, each time: a third of a second, more than a tiny training takes.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forget_rules():
    """Rules are modules in the test's own folder: the next test has others under the same name."""
    yield
    for name in [name for name in sys.modules if name.endswith("_rules") and "." not in name]:
        del sys.modules[name]
