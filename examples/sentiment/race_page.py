"""Keeps the result of race.py in results/ and writes its section of README.md.

python examples/sentiment/race_page.py runs/sentiment-race
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from frontier import rise_at
from frontier_plot import finished
from race import NOISE, NOISY, RACED, SETTINGS, result_of
from run import exit_code, write_json

from preftune.amounts import counted, duration
from preftune.comparison.methods import METHODS
from preftune.errors import RequestError
from preftune.statistics.intervals import mean_interval
from preftune.storage.atomic import write_whole

HERE = Path(__file__).parent
BEGIN, END = "<!-- written by race_page.py from results/race.json -->", "<!-- end of the race -->"
LEVELS = (1.0, 2.0, 4.0, 6.0)
"""Nats at which methods are compared."""
Record = Mapping[str, Any]
_COLOURS = [
    "#1b6ca8", "#c8553d", "#2e8b57", "#8e5ea2", "#b8860b", "#17a2b8", "#d6336c", "#6b6b6b", "#7a4b2b", "#5c7cfa",
    "#94a000", "#000000",
]  # fmt: skip


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    return exit_code("race_page.py", lambda: keep(Path(sys.argv[1]), HERE))


def keep(source: Path, here: Path) -> None:
    """Copies the result without its texts, draws it, and writes the section. Raises: RequestError without a result."""
    if not (source / "baseline.json").is_file() or not list((source / "runs").glob("*.json")):
        raise RequestError(f"{source} has no runs. Let race.py finish some, and name its --output here.")
    found = dict(result_of(source, SETTINGS))
    found["runs"] = [
        {**run, "points": [{k: v for k, v in point.items() if k != "texts"} for point in run["points"]]}
        for run in found["runs"]
    ]
    found["baseline"] = {k: v for k, v in found["baseline"].items() if not isinstance(v, list)}
    write_json(here / "results" / "race.json", found)
    plot(found).save(str(here / "results" / "race.svg"))
    readme = here / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    write_whole(readme, f"{before}{BEGIN}\n\n{page(found)}\n{END}{rest.split(END)[1]}".encode())


def page(found: Mapping[str, Any]) -> str:
    """The tables, and what they show."""
    runs, baseline = found["runs"], found["baseline"]
    seeds = sorted({run["seed"] for run in runs})
    return "\n\n".join([
        f"{len(runs)} runs over {counted(len(seeds), 'seed')}, {duration(sum(run['seconds'] for run in runs))} of "
        "process time on a machine that did other things too; intervals are 95% over seeds.",
        "**Each method at its authors' strength**: the rise of the gold reward in standard deviations of the "
        "reference's, at the end of the run and where its path passes a KL.",
        _ends(runs, baseline),
        "![gold reward against KL](results/race.svg)",
        "**Labels turned round**: the rise at the end, what was lost against the same loss on clean labels, and the "
        "difference from DPO on the same labels, seed by seed. An interval that holds 0 shows no difference.",
        _noise(runs, baseline),
    ]) + "\n"  # fmt: skip


def _ends(runs: Sequence[Record], baseline: Record) -> str:
    levels = " | ".join(f"at {level:g} nats" for level in LEVELS)
    lines = [f"| | KL, nats | rise at the end | VADER, rise | {levels} |"]
    lines.append("|---|---|---|---|" + "---|" * len(LEVELS))
    ordered = sorted(RACED, key=lambda name: -_mean([_gain(run, baseline) for run in _of(runs, name)]))
    for name in ordered:
        clean = _of(runs, name)
        if not clean:
            continue
        ends = [run["points"][-1] for run in clean]
        at = [[rise for run in clean if (rise := rise_at(run, level, baseline)) is not None] for level in LEVELS]
        cells = [
            f"{METHODS[name].title}, {METHODS[name].strength if name != 'ppo' else 'target'} {clean[0]['strength']:g}",
            f"{_mean([end['kl'] for end in ends]):.1f}",
            _interval([_gain(run, baseline) for run in clean]),
            f"{_mean([(end['vader'] - baseline['vader']) / baseline['vader_deviation'] for end in ends]):.2f}",
            *(f"{_mean(values):.2f}" if len(values) == len(clean) else "" for values in at),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _noise(runs: Sequence[Record], baseline: Record) -> str:
    lines = ["| | clean | " + " | ".join(f"{share:.0%} wrong | lost | less DPO's" for share in NOISE) + " |"]
    lines.append("|---|---|" + "---|---|---|" * len(NOISE))
    for name in NOISY:
        clean = {run["seed"]: _gain(run, baseline) for run in _of(runs, "dpo" if name in ("cdpo", "robust") else name)}
        cells = [METHODS[name].title, _interval(list(clean.values()))]
        for share in NOISE:
            noisy = {run["seed"]: _gain(run, baseline) for run in _of(runs, name, share)}
            lost = [clean[seed] - gain for seed, gain in noisy.items() if seed in clean]
            dpo = {run["seed"]: _gain(run, baseline) for run in _of(runs, "dpo", share)}
            apart = [gain - dpo[seed] for seed, gain in noisy.items() if seed in dpo and name != "dpo"]
            cells += [_interval(list(noisy.values())), _interval(lost), _interval(apart)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: Mapping[str, Any]) -> Any:
    """Reward over KL, the mean over seeds at each point, a line for each method."""
    rows = []
    for name in RACED:
        clean = _of(found["runs"], name)
        for order, points in enumerate(zip(*(run["points"] for run in clean), strict=True)):
            kl, reward = (_mean([point[what] for point in points]) for what in ("kl", "reward"))
            last = order == len(clean[0]["points"]) - 1
            title = METHODS[name].title
            rows.append({"method": title, "order": order + 1, "kl": kl, "reward": reward, "end": title if last else ""})
    begin = {"kl": 0.0, "reward": found["baseline"]["reward"], "order": 0, "end": ""}
    rows += [{**begin, "method": METHODS[name].title} for name in RACED if _of(found["runs"], name)]
    x = alt.X("kl:Q", title="KL to the reference, nats per completion", scale=alt.Scale(type="sqrt", zero=True))
    y = alt.Y("reward:Q", title="gold reward, log-odds", scale=alt.Scale(zero=False))
    titles = [METHODS[name].title for name in RACED if _of(found["runs"], name)]
    scale = alt.Scale(domain=titles, range=_COLOURS)
    colour = alt.Color("method:N", title=None, scale=scale, legend=alt.Legend(labelLimit=0))
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, color=colour)
    lines = base.mark_line(strokeWidth=1.5, opacity=0.8).encode(detail="method:N", order="order:Q")
    marks = base.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape("method:N", title=None, scale=alt.Scale(domain=titles))
    )
    return finished(alt.layer(lines, marks), legend="right")


def _of(runs: Sequence[Record], method: str, noise: float = 0.0) -> list[Record]:
    return [run for run in runs if run["method"] == method and run["noise"] == noise]


def _gain(run: Record, baseline: Record) -> float:
    return float((run["points"][-1]["reward"] - baseline["reward"]) / baseline["reward_deviation"])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("-inf")


def _interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    found = mean_interval(values)
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
