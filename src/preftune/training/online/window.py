"""Means over what was counted since the last log: sums stay on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class Averages:
    """Weighted means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Count means that stand for `weight` things each (answers, tokens)."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (total + value * weight, count + weight)

    def drain(self) -> dict[str, float]:
        """The means since the last call."""
        found = {name: float(total) / float(count) for name, (total, count) in self._sums.items() if float(count)}
        self._sums = {}
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a resumed run logs the same means."""
        return {name: [float(total), float(count)] for name, (total, count) in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: (float(total), float(count)) for name, (total, count) in state.items()}
