"""The alarm of the guard, and its line in guard.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from preftune.log import warn
from preftune.storage.run_directory import append_line

ALARM: Literal["alarm"] = "alarm"
NOTE: Literal["note"] = "note"
"""Level of an alarm that does not stop a run."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An observation, its likely cause, and the change that fixes it, each in one sentence or two."""

    step: int
    name: str
    seen: str
    cause: str
    remedy: str
    level: str = ALARM
    figures: Mapping[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        return f"{self.seen} {self.cause} {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "name": self.name,
            "level": self.level,
            "seen": self.seen,
            "cause": self.cause,
            "remedy": self.remedy,
            "figures": {name: float(f"{value:.4g}") for name, value in self.figures.items()},
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Alarm:
        """The alarm of a line of guard.jsonl."""
        texts = {name: str(line.get(name, "")) for name in ("name", "seen", "cause", "remedy")}
        return cls(
            step=int(line.get("step", 0)), level=str(line.get("level", ALARM)), figures=line.get("figures", {}), **texts
        )

    def announce(self, folder: Path, mode: str) -> None:
        """Append the alarm to guard.jsonl, and log it as a warning."""
        action = mode if self.level == ALARM else "warn"
        append_line(folder / "guard.jsonl", {"time": time.time(), **self.to_dict(), "action": action})
        warn(f"guard, step {self.step}: {self.sentence()}")
