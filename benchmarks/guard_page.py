"""The table of docs/guard.md, written from what benchmarks/guard_runs.py kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guard_replay import replay
from guard_runs import EXPECTED, RESULTS, SEEN_WHILE_TUNING

PAGE = Path(__file__).parent.parent / "docs" / "guard.md"
BEGIN, END = "<!-- the runs: written by benchmarks/guard_runs.py --page -->", "<!-- the runs end here -->"

SAID = {
    "healthy": "nothing is wrong",
    "learning-rate-x100": "learning rate 0.03 in place of 3e-4",
    "beta-0.001": "beta 0.001 in place of 0.1",
    "shuffled-labels": "every other label turned round, by chance",
    "duplicated-data": "16 different pairs, eight times each",
    "only-length": "the chosen answer is the rejected one and two polite sentences",
}


def runs_of(folder: Path = RESULTS) -> dict[str, dict[int, Path]]:
    """The runs that are there: case -> seed -> folder."""
    found: dict[str, dict[int, Path]] = {}
    for case in EXPECTED:
        seeds = {
            int(path.name.rsplit("-", 1)[1]): path for path in folder.glob(f"{case}-*") if (path / "run.json").exists()
        }
        if seeds:
            found[case] = dict(sorted(seeds.items()))
    return found


def first_alarms(folder: Path) -> list[str]:
    """What the rules of today say of a recorded run, in order, with the step."""
    return [f"{alarm.name} ({alarm.step})" for alarm in replay(folder)]


def table(folder: Path = RESULTS) -> str:
    """Markdown: a row per case, the step of its alarm by seed."""
    runs = runs_of(folder)
    if not runs:
        return "No runs are recorded yet."
    seeds = sorted({seed for by_seed in runs.values() for seed in by_seed})
    head = [f"seed {seed}{'*' if seed in SEEN_WHILE_TUNING else ''}" for seed in seeds]
    lines = [f"| run | alarm | {' | '.join(head)} |", f"|---|---|{'---|' * len(head)}"]
    for case, by_seed in runs.items():
        cells = [cell(case, by_seed[seed]) if seed in by_seed else "" for seed in seeds]
        lines.append(f"| {SAID[case]} | {EXPECTED[case] or 'none'} | {' | '.join(cells)} |")
    facts = [json.loads((path / "run.json").read_text(encoding="utf-8")) for b in runs.values() for path in b.values()]
    return "\n".join([*lines, "", _costs(facts)])


def cell(case: str, folder: Path) -> str:
    """The step of the first alarm if it is the right one; otherwise everything that was said."""
    alarms = replay(folder)
    if EXPECTED[case] is None:
        return "none" if not alarms else ", ".join(f"{alarm.name} ({alarm.step})" for alarm in alarms)
    if alarms and alarms[0].name == EXPECTED[case]:
        return str(alarms[0].step)
    return ", ".join(f"{alarm.name} ({alarm.step})" for alarm in alarms) or "none"


def _costs(facts: Sequence[Mapping[str, Any]]) -> str:
    whole = [fact for fact in facts if fact["steps"] == fact["guard"]["facts"]["steps"]]
    shares = [fact["guard"]["share"] for fact in whole]
    looks = [fact["guard"]["checks"] for fact in facts]
    steps = facts[0]["guard"]["facts"]["steps"]
    return (
        f"Steps of {steps}, first alarm; a star marks the seeds that thresholds were chosen on. "
        f"{len(facts)} runs, {min(looks)} to {max(looks)} looks each"
        + (f"; in whole runs the guard took {min(shares):.1%} to {max(shares):.1%} of the time." if shares else ".")
    )


def write_page(folder: Path = RESULTS) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(folder)}\n{END}{after}", encoding="utf-8")
