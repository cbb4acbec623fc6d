from __future__ import annotations

import sys

import pytest

from preftune import progress
from preftune.generation.endpoint.parallel import in_parallel
from preftune.progress import Counting


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Counting("sampling", unit="completions") as counting:
        counting(10, 100)
        for done, at in ((20, 10.0), (40, 40.0), (50, 50.0), (100, 90.0)):
            now[0] = at
            counting(done, 100)
    assert caplog.messages == ["sampling: 40 of 100 completions, about 80 s left"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Counting("labelling", unit="verdicts") as counting:
        counting(3, 10)
        counting(10, 10)
    assert "labelling" in capsys.readouterr().err


def test_results_are_taken_in_the_calling_thread_and_errors_come_last() -> None:
    taken: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item * 10

    with pytest.raises(KeyError):
        in_parallel(work, range(100), workers=2, take=lambda item, result: taken.append(result))
    assert {0, 10, 20} <= set(taken)
    assert len(taken) < 100
