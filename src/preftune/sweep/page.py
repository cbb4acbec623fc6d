"""A sweep as one page: the best trial, all trials side by side, what mattered, and the recipe to go on with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from preftune.amounts import counted
from preftune.report.html.components import NOTHING, listed, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.html.vega_lite import Specification, field, finished, layered, mark
from preftune.version import __version__

_SHOWN = 200
"""Rows of the table."""


def sweep_page(result: Mapping[str, Any]) -> str:
    """The whole page, from `Sweep.result`."""
    page = Page(f"{result['objective']} · preftune sweep", styles=["run.css"])
    sections = [
        ("trials", "Trials", _trials(page, result)),
        ("all", "All trials", panels(panel("", "", _table(result), full=True))),
        ("recipe", "The best recipe", _recipe(result)),
        ("method", "How it was done", listed(_how(result))),
    ]
    return page.render(markup("components.body", _first_screen(page, result), sections, __version__))


def _first_screen(page: Page, result: Mapping[str, Any]) -> Markup:
    best = result["best"]
    states = [trial["state"] for trial in result["trials"]]
    asked = (
        f"{counted(states.count('complete'), 'whole trial')}, {states.count('pruned')} stopped early, "
        f"{states.count('fail')} failed, of {result['planned']} planned; "
        f"{'higher' if result['direction'] == 'maximize' else 'lower'} is better."
    )
    if best is None:
        return markup("run.one", result["command"], "unsure", "No trial has ended", "", "", NOTHING, NOTHING, asked)
    said = ", ".join(f"{name} {_text(value)}" for name, value in best["settings"].items())
    chart = page.chart(
        "history", _history(result), label=f"The objective of every trial; the best is {best['value']:.4g}"
    )
    word = f"{result['objective']} {best['value']:.4g}"
    return markup(
        "run.one", result["command"], "good", word, "", f"trial {best['number']}: {said}", chart, NOTHING, asked
    )


def _trials(page: Page, result: Mapping[str, Any]) -> Markup:
    cards = []
    if len(_complete(result)) > 1:
        words = "A line is a trial; the darker, the better. Each axis goes from its lowest value to its highest."
        drawn = page.chart("parallel", _parallel(result), label="Settings of all trials with their objective")
        cards.append(panel("Settings and objective", words, drawn, full=True))
    if result["importance"]:
        words = "The share of the objective's differences that a setting explains (PED-ANOVA)."
        label = ", ".join(f"{name} {value:.0%}" for name, value in result["importance"].items())
        cards.append(
            panel("What mattered", words, page.chart("importance", _importance(result), label=label), full=True)
        )
    return panels(*cards) if cards else listed(["There are too few whole trials to compare."])


def _table(result: Mapping[str, Any]) -> Markup:
    names = [one["name"] for one in result["searched"]]
    sign = -1 if result["direction"] == "maximize" else 1
    ordered = sorted(_complete(result), key=lambda trial: sign * trial["value"])
    ordered += [trial for trial in result["trials"] if trial["state"] != "complete"]
    seeds = len(result["seeds"]) > 1
    rows = []
    for trial in ordered[:_SHOWN]:
        last = trial["intermediate"][-1][1] if trial["intermediate"] else None
        value = f"{trial['value']:.4g}" if trial["state"] == "complete" else f"{last:.4g}" if last is not None else ""
        state = {"complete": "", "pruned": "stopped early", "fail": "failed"}.get(trial["state"], trial["state"])
        by_seed = [", ".join(f"{one:.4g}" for one in trial["by_seed"] or [])] if seeds else []
        took = "" if trial["seconds"] is None else f"{trial['seconds']:.0f} s"
        settings = [_text(trial["settings"].get(name)) for name in names]
        rows.append([f"{trial['number']}", value, *by_seed, *settings, took, state])
    return table(["trial", result["objective"], *(["by seed"] if seeds else []), *names, "time", ""], rows)


def _recipe(result: Mapping[str, Any]) -> Markup:
    if result["best"] is None:
        return listed(["No trial has ended yet."])
    text = yaml.safe_dump(result["best"]["recipe"], sort_keys=False, allow_unicode=True)
    words = f"best.yaml: preftune {result['command']} --config best.yaml"
    return panels(panel("", words, markup("components.code", text), full=True))


def _how(result: Mapping[str, Any]) -> Iterator[str]:
    seeds = result["seeds"]
    each = "" if len(seeds) == 1 else f", the mean over the seeds {', '.join(map(str, seeds))}"
    yield f"The objective is {result['objective']} at the end of a trial{each}."
    if result["note"]:
        yield result["note"]
    yield (
        "The best of many trials looks better than it is: its value was chosen for being high. Train best.yaml with "
        "other seeds, and judge it on prompts that no trial has seen (preftune eval)."
    )
    scores = result["reference_scores"]
    if scores["computed"] + scores["from_cache"]:
        yield (
            f"The reference scored {counted(scores['computed'], 'completion')} for all trials together; "
            f"{scores['from_cache']:,} scores came from its cache."
        )
    yield "Every trial is a run directory under trials/, with the recipe that repeats it (--config)."


# --- charts ---


def _history(result: Mapping[str, Any]) -> Specification:
    rows: list[dict[str, Any]] = []
    best: float | None = None
    pick = max if result["direction"] == "maximize" else min
    for trial in _complete(result):
        best = trial["value"] if best is None else pick(best, trial["value"])
        rows.append({"trial": trial["number"], "value": _rounded(trial["value"]), "best": _rounded(best)})
    ticks = min(10, max(1, len(rows) - 1))
    x = {"x": field("trial:Q", title="trial", axis={"format": "d", "tickCount": ticks, "grid": False})}
    best_so_far = {"y": field("best:Q", title=result["objective"])}
    value = {
        "y": field("value:Q", title=result["objective"], scale={"zero": False}, axis={"tickCount": 5}),
        "tooltip": [field("trial:Q"), field("value:Q", format=".4~g")],
    }
    layers = [
        mark("line", {**x, **best_so_far}, interpolate="step-after", color="var(--run-2)"),
        mark("point", {**x, **value}, filled=True, size=60, color="var(--run-1)"),
    ]
    return finished(layered(layers, rows))


def _parallel(result: Mapping[str, Any]) -> Specification:
    trials = _complete(result)
    axes = [(one["name"], one) for one in result["searched"]]
    values = [trial["value"] for trial in trials]
    rows = []
    for trial in trials:
        worth = _share(trial["value"], min(values), max(values), log=False)
        worth = worth if result["direction"] == "maximize" else 1 - worth
        said = ", ".join(f"{name} {_text(value)}" for name, value in trial["settings"].items())
        shared = {
            "trial": trial["number"],
            "worth": _rounded(worth),
            "value": _rounded(trial["value"]),
            "settings": said,
        }
        rows += [
            {**shared, "axis": name, "place": _rounded(_place(trial["settings"].get(name), one)),
             "text": _text(trial["settings"].get(name))}
            for name, one in axes
        ]  # fmt: skip
        rows.append({**shared, "axis": result["objective"], "place": _rounded(worth), "text": f"{trial['value']:.4g}"})
    order = [*(name for name, _ in axes), result["objective"]]
    unit = {"domain": [0, 1]}
    hidden = {"labels": False, "ticks": False, "grid": False}
    encoding = {
        "x": field("axis:N", sort=order, title=None, axis={"labelAngle": 0, "grid": True}),
        "y": field("place:Q", title=None, axis=hidden, scale=unit),
        "opacity": field("worth:Q", scale={**unit, "range": [0.08, 1]}, legend=None),
        "tooltip": [field("trial:Q"), field("value:Q", format=".4~g"), *map(field, ("settings:N", "axis:N", "text:N"))],
    }
    ends = [
        {"axis": one["name"], "place": place, "text": _text(one["ends"][-place])} for _, one in axes for place in (0, 1)
    ]
    ends += [
        {"axis": result["objective"], "place": place, "text": f"{end:.4g}"}
        for place, end in enumerate(sorted((min(values), max(values)), reverse=result["direction"] == "minimize"))
    ]
    at_end = {"x": field("axis:N", sort=order), "y": field("place:Q"), "text": field("text:N")}
    layers = [
        mark("line", {**encoding, "detail": field("trial:N")}, color="var(--run-1)", strokeWidth=2),
        mark("point", encoding, filled=True, size=40, color="var(--run-1)"),
        mark("text", at_end, ends, align="left", dx=7, fontSize=11, color="var(--muted)"),
    ]
    return finished(layered(layers, rows), height=280)


def _importance(result: Mapping[str, Any]) -> Specification:
    rows = [{"setting": name, "share": value} for name, value in result["importance"].items()]
    encoding = {
        "y": field("setting:N", sort=[row["setting"] for row in rows], title=None),
        "x": field("share:Q", title=None, axis={"format": "%", "tickCount": 5}),
        "tooltip": [field("setting:N"), field("share:Q", format=".0%")],
    }
    return finished(mark("bar", encoding, rows, color="var(--run-1)"), height=40 + 28 * len(rows))


def _place(value: Any, searched: Mapping[str, Any]) -> float:
    """Where on its axis, 0 to 1."""
    ends: Sequence[Any] = searched["ends"]
    if searched["log"] is None:
        return ends.index(value) / max(1, len(ends) - 1) if value in ends else 0.0
    return _share(value, ends[0], ends[-1], log=searched["log"])


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return 0.5 if high == low else (value - low) / (high - low)


def _complete(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in result["trials"] if trial["state"] == "complete"]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
