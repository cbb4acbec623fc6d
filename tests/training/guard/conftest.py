"""The fixture that the guard's tests share."""

from __future__ import annotations

import pytest

from .guard_runs import pay_for_everything


@pytest.fixture
def paid(monkeypatch):
    pay_for_everything(monkeypatch)
