"""The charts of a run's page: curves with the alarms on them, and win rates with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.report.html.vega_lite import Specification, field, finished, layered, mark
from preftune.report.run.curves import Line, Mark, Panel
from preftune.report.run.headline import Rate

_QUIET, _ALARM, _NOTE = "var(--muted)", "var(--error)", "var(--warning)"
_COLOURS = [f"var(--run-{number})" for number in range(1, 9)]
_SERIES = {
    "training": "var(--run-1)", "held out": "var(--run-2)", "guard's pairs": "var(--run-3)",
    "chosen": "var(--run-1)", "rejected": "var(--run-2)", "model": "var(--run-1)", "reference": "var(--other)",
}  # fmt: skip
_DASHES = [[1, 0], [5, 3], [2, 2], [8, 3, 2, 3], [1, 3]]
_COLUMNS = 3
"""Entries of a legend in rows that fit on a phone."""
_FEW = 30
"""Points that are drawn as dots as well."""
_MARKS_DRAWN = 40
"""Alarms on one chart."""
_TICKS = {"tickCount": 5}


def curve(
    panel: Panel, lines: Sequence[Line], marks: Sequence[Mark], *, runs: Sequence[str], last: int
) -> Specification:
    """Metrics over steps. One run: a colour per line. Several: a colour per run, a dash per line.

    Args:
        lines: those of this panel.
        runs: names of all runs on the page, in their order, so that a run has one colour everywhere.
        last: the last step of all runs.
    """
    values = [
        {"step": step, "value": None if value is None else float(f"{value:.5g}"), "line": line.series, "run": line.run}
        for line in lines
        for step, value in line.points
    ]
    names = list(dict.fromkeys(line.series for line in lines))
    domain = {"domain": [0, 1]} if panel.share and _within_one(lines) else {}
    axis = {**_TICKS, "format": panel.format} if panel.format != ".3~g" else _TICKS
    encoding = {
        "x": _step(last, grid=False),
        "y": field("value:Q", title=panel.unit, scale={"zero": panel.zero, **domain}, axis=axis),
        "detail": field("line:N"),
        **_colours(names, runs),
    }
    # The dash is of the lines alone: the legend of layers that share one takes over their lack of a stroke.
    dashes = {"strokeDash": encoding.pop("strokeDash")} if "strokeDash" in encoding else {}
    drawn = mark("line", {**encoding, **dashes}, strokeWidth=2, strokeJoin="round", invalid="break-paths-show-domains")
    few = sorted({line.series for line in lines if len(line.points) <= _FEW})
    dots = mark("point", encoding, filled=True, size=26, opacity=1)
    dots["transform"] = [{"filter": {"field": "line", "oneOf": few}}]
    tooltip = [
        *([field("run:N")] if len(runs) > 1 else []),
        *([field("line:N")] if len(names) > 1 else []),
        field("step:Q", format=","),
        field("value:Q", format=panel.format if panel.format != ".3~g" else ".4~g"),
    ]
    seen = {"condition": {"param": "near", "value": 1, "empty": False}, "value": 0}
    hover = mark("point", {**encoding, "opacity": seen, "tooltip": tooltip}, filled=True, size=75)
    nearest = {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}
    hover["params"] = [{"name": "near", "select": nearest}]
    layers = [*_rules(marks, several=len(runs) > 1), drawn, *([dots] if few else []), hover]
    return finished(layered(layers, values))


def timeline(marks: Sequence[Mark], *, runs: Sequence[str], last: int) -> Specification:
    """The alarms on the axis of steps, a row for each kind."""
    values = [{**_of_mark(one), "kind": one.name, "what": one.level} for one in marks]
    kinds = list(dict.fromkeys(one.name for one in marks))
    levels = ["alarm", "note"]
    encoding = {
        "x": _step(last),
        "y": field("kind:N", title=None, sort=kinds, axis={"labelLimit": 260, "grid": False}),
        "color": field("what:N", legend=None, scale={"domain": levels, "range": [_ALARM, _NOTE]}),
        "shape": field("what:N", legend=None, scale={"domain": levels, "range": ["triangle-up", "circle"]}),
        "tooltip": _mark_tooltip(several=len(runs) > 1),
    }
    chart = mark("point", encoding, values, filled=True, size=110, opacity=1)
    return finished(chart, height=28 * len(kinds) + 46)


def rates(rows: Mapping[str, Rate], *, bare: bool = False) -> Specification:
    """Win rates with their intervals, a line at 50% and one at the 55% bar.

    Args:
        rows: label -> rate, in the order in which they are drawn.
        bare: one rate without a label of its own.
    """
    values = [
        {"name": name, "rate": rate.rate, "low": rate.low, "high": rate.high, "tone": _tone(rate)}
        for name, rate in rows.items()
    ]
    scale = {"domain": [0, 1], "nice": False}
    ticks = {"format": "%", "values": [0, 0.25, 0.5, 0.75, 1], "grid": False, "title": None}
    tones = {"domain": ["good", "bad", "unsure"], "range": ["var(--good)", "var(--error)", "var(--muted)"]}
    encoding = {
        "y": field("name:N", sort=list(rows), title=None, axis=None if bare else {"labelLimit": 230, "grid": False}),
        "color": field("tone:N", legend=None, scale=tones),
        "tooltip": [
            *([] if bare else [field("name:N")]),
            *(field(f"{one}:Q", format=".1%") for one in ("rate", "low", "high")),
        ],
    }
    bars = [{"at": 0.5, "of": "even"}, {"at": 0.55, "of": "bar"}]
    at = {"x": field("at:Q", scale=scale, axis=ticks)}
    between = {"x": field("low:Q"), "x2": {"field": "high"}}
    layers = [
        mark("rule", at, bars, color=_QUIET, strokeDash=[3, 3], opacity=0.8),
        mark("rule", {**encoding, **between}, strokeWidth=7, opacity=0.28, strokeCap="round"),
        mark("point", {**encoding, "x": field("rate:Q", scale=scale)}, filled=True, size=130, opacity=1),
    ]
    return finished(layered(layers, values), height=58 if bare else 30 * len(rows) + 28)


def _colours(names: Sequence[str], runs: Sequence[str]) -> dict[str, Any]:
    legend = {"orient": "top", "title": None, "symbolType": "stroke", "columns": _COLUMNS, "labelLimit": 130}
    if len(runs) == 1:
        scale = {"domain": list(names), "range": _series_colours(names)}
        return {"color": field("line:N", scale=scale, legend=legend if len(names) > 1 else None)}
    colours = {"color": field("run:N", scale={"domain": list(runs), "range": _COLOURS}, legend=legend)}
    if len(names) > 1:
        dashes = {"domain": list(names), "range": _DASHES}
        colours["strokeDash"] = field("line:N", scale=dashes, legend={**legend, "symbolStrokeColor": _QUIET})
    return colours


def _series_colours(names: Sequence[str]) -> list[str]:
    """The colour that a line has on every chart, and for others one that no line has."""
    known = {name: _SERIES[name] for name in names if name in _SERIES}
    free = (colour for colour in _COLOURS * (1 + len(names) // 8) if colour not in known.values())
    return [known[name] if name in known else next(free, _QUIET) for name in names]


def _rules(marks: Sequence[Mark], *, several: bool) -> list[Specification]:
    """The alarms as lines across a chart."""
    layers = []
    encoding = {"x": field("step:Q"), "tooltip": _mark_tooltip(several=several)}
    for level, colour in (("note", _NOTE), ("alarm", _ALARM)):
        values = [_of_mark(one) for one in marks if one.level == level][:_MARKS_DRAWN]
        if values:
            layers.append(mark("rule", encoding, values, color=colour, strokeDash=[2, 3], strokeWidth=1.5))
    return layers


def _of_mark(one: Mark) -> dict[str, Any]:
    return {"step": one.step, "alarm": one.name, "seen": one.seen[:300], "run": one.run}


def _mark_tooltip(*, several: bool) -> list[dict[str, Any]]:
    names = ["alarm:N", "seen:N", *(["run:N"] if several else [])]
    return [field("step:Q", format=","), *map(field, names)]


def _tone(rate: Rate) -> str:
    return "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "unsure"


def _within_one(lines: Sequence[Line]) -> bool:
    return all(0 <= value <= 1 for line in lines for _, value in line.points if value is not None)


def _step(last: int, **axis: Any) -> dict[str, Any]:
    scale = {"domain": [0, max(1, last)], "nice": False}
    return field("step:Q", title="step", scale=scale, axis={**_TICKS, **axis})
