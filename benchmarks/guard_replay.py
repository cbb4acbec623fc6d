"""The rules over a run that is over: what would be raised, and when. For tests, and for choosing thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.generation.generate import Completion
from preftune.storage.jsonl import read_lines
from preftune.training.guard.alarms import Alarm
from preftune.training.guard.figures import Facts, History, Look, history_of
from preftune.training.guard.rules import new_alarms
from preftune.training.guard.samples import text_figures


def replay(folder: str | Path, *, until: int | None = None) -> list[Alarm]:
    """The alarms of a recorded run, from its metrics.jsonl, samples.jsonl and run.json.

    What the answers look like is read from the samples again, so that a change of the rules on texts shows.

    Args:
        until: the last step that is read; None for all.
    Raises:
        FileNotFoundError: the folder holds no run.json or no metrics.jsonl.
    """
    path = Path(folder)
    facts = Facts.from_dict(json.loads((path / "run.json").read_text(encoding="utf-8"))["guard"]["facts"])
    whole = history_of(facts, read_lines(path / "metrics.jsonl"))
    samples = read_lines(path / "samples.jsonl")
    looks = {look.step: _look_again(look, [s for s in samples if s["step"] == look.step]) for look in whole.looks}
    history, raised, alarms = History(facts), set[str](), list[Alarm]()
    for glance in whole.glances:
        if until is not None and glance.step > until:
            break
        history.glances.append(glance)
        if glance.step in looks:
            history.looks.append(looks[glance.step])
        found = new_alarms(history, raised)
        raised |= {alarm.name for alarm in found}
        alarms += found
    return alarms


def _look_again(look: Look, samples: Sequence[Mapping[str, Any]]) -> Look:
    def side(name: str) -> list[Completion]:
        return [Completion(s[name], s[f"{name}_tokens"], s[f"{name}_finished"]) for s in samples]

    return text_figures(look, side("reference"), side("policy"))
