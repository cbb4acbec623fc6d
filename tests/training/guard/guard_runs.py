"""Short runs under the guard, for the tests of it: looks that cost nothing, answers of a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preftune.training.guard import looking, schedule
from preftune.training.guard.schedule import Size
from tests.training.dpo_runs import strict_json, trainer
from tiny import rows

TINY_SIZE = Size(prompts=3, tokens=17, distance_tokens=6, pairs=4)


def pay_for_everything(patch: pytest.MonkeyPatch) -> None:
    """A look after every step, whatever it costs."""
    patch.setattr(schedule, "SIZES", (TINY_SIZE, TINY_SIZE._replace(tokens=16)))
    patch.setattr(looking, "SIZES", (TINY_SIZE, TINY_SIZE._replace(tokens=16)))
    for module in (schedule, looking):
        patch.setattr(module, "allowed_seconds", lambda seconds, budget: 1e9)


def guarded(model: Any, folder: Path, **options: Any) -> Any:
    settings = {"data": rows(14), "eval_dataset": rows(6, start=40), "guard": "warn", "max_steps": 4, **options}
    return trainer(model, folder, **settings)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [strict_json(line) for line in path.read_text().splitlines()] if path.exists() else []


def looks(folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(folder, "metrics.jsonl") if "guard/seconds" in line]
