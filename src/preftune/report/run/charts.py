"""The charts of a run's page, by Altair: curves with the alarms on them, and win rates with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from preftune.report.run.curves import Line, Mark, Panel
from preftune.report.run.headline import Rate

Specification = dict[str, Any]

_HEIGHT = 210
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


def curve(panel: Panel, lines: Sequence[Line], marks: Sequence[Mark], *, runs: Sequence[str], last: int) -> Any:
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
    x = alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, max(1, last)], nice=False), axis=_axis(grid=False))
    domain = [0, 1] if panel.share and _within_one(lines) else alt.Undefined
    axis = _axis(format=panel.format) if panel.format != ".3~g" else _axis()
    y = alt.Y("value:Q", title=panel.unit, scale=alt.Scale(zero=panel.zero, domain=domain), axis=axis)
    tooltip = [
        *([alt.Tooltip("run:N")] if len(runs) > 1 else []),
        *([alt.Tooltip("line:N")] if len(names) > 1 else []),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("value:Q", format=panel.format if panel.format != ".3~g" else ".4~g"),
    ]
    colours = _colours(names, runs)
    dashes = {"strokeDash": colours.pop("strokeDash")} if "strokeDash" in colours else {}
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y, detail="line:N", **colours)
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    # The dash is of the lines alone: the legend of layers that share one takes over their lack of a stroke.
    drawn = base.mark_line(strokeWidth=2, strokeJoin="round", invalid="break-paths-show-domains").encode(**dashes)
    few = {line.series for line in lines if len(line.points) <= _FEW}
    dots = base.transform_filter(alt.FieldOneOfPredicate("line", sorted(few))).mark_point(
        filled=True, size=26, opacity=1
    )
    hover = (
        base.mark_point(filled=True, size=75)
        .encode(opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=tooltip)
        .add_params(near)
    )
    return finished(alt.layer(*_rules(marks, several=len(runs) > 1), drawn, *([dots] if few else []), hover))


def timeline(marks: Sequence[Mark], *, runs: Sequence[str], last: int) -> Any:
    """The alarms on the axis of steps, a row for each kind."""
    values = [{**_of_mark(mark), "kind": mark.name, "what": mark.level} for mark in marks]
    kinds = list(dict.fromkeys(mark.name for mark in marks))
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, max(1, last)], nice=False), axis=_axis()),
            y=alt.Y("kind:N", title=None, sort=kinds, axis=alt.Axis(labelLimit=260, grid=False)),
            color=alt.Color("what:N", legend=None, scale=alt.Scale(domain=["alarm", "note"], range=[_ALARM, _NOTE])),
            shape=alt.Shape("what:N", legend=None, scale=alt.Scale(domain=["alarm", "note"],
                                                                   range=["triangle-up", "circle"])),
            tooltip=_mark_tooltip(several=len(runs) > 1),
        )
    )  # fmt: skip
    return finished(chart, height=28 * len(kinds) + 46)


def rates(rows: Mapping[str, Rate], *, bare: bool = False) -> Any:
    """Win rates with their intervals, a line at 50% and one at the 55% bar.

    Args:
        rows: label -> rate, in the order in which they are drawn.
        bare: one rate without a label of its own.
    """
    values = [
        {"name": name, "rate": rate.rate, "low": rate.low, "high": rate.high, "tone": _tone(rate)}
        for name, rate in rows.items()
    ]
    order = list(rows)
    scale = alt.Scale(domain=[0, 1], nice=False)
    ticks = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], grid=False, title=None)
    y = alt.Y("name:N", sort=order, title=None, axis=None if bare else alt.Axis(labelLimit=230, grid=False))
    tooltip = [
        *([] if bare else [alt.Tooltip("name:N")]),
        *(alt.Tooltip(f"{field}:Q", format=".1%") for field in ("rate", "low", "high")),
    ]
    colour = alt.Color(
        "tone:N",
        legend=None,
        scale=alt.Scale(domain=["good", "bad", "unsure"], range=["var(--good)", "var(--error)", "var(--muted)"]),
    )
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y, color=colour, tooltip=tooltip)
    at = alt.Chart(alt.InlineData(values=[{"at": 0.5, "of": "even"}, {"at": 0.55, "of": "bar"}])).mark_rule(
        color=_QUIET, strokeDash=[3, 3], opacity=0.8
    )
    layers = [
        at.encode(x=alt.X("at:Q", scale=scale, axis=ticks)),
        base.mark_rule(strokeWidth=7, opacity=0.28, strokeCap="round").encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=130, opacity=1).encode(x=alt.X("rate:Q", scale=scale)),
    ]
    return finished(alt.layer(*layers), height=58 if bare else 30 * len(rows) + 28)


def _colours(names: Sequence[str], runs: Sequence[str]) -> dict[str, Any]:
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", columns=_COLUMNS, labelLimit=130)
    dashed = alt.Legend(
        orient="top", title=None, symbolType="stroke", columns=_COLUMNS, labelLimit=130, symbolStrokeColor=_QUIET
    )
    if len(runs) == 1:
        scale = alt.Scale(domain=list(names), range=_series_colours(names))
        return {"color": alt.Color("line:N", scale=scale, legend=legend if len(names) > 1 else None)}
    colours: dict[str, Any] = {
        "color": alt.Color("run:N", scale=alt.Scale(domain=list(runs), range=_COLOURS), legend=legend)
    }
    dashes = alt.Scale(domain=list(names), range=_DASHES)
    if len(names) > 1:
        colours["strokeDash"] = alt.StrokeDash("line:N", scale=dashes, legend=dashed)
    return colours


def _series_colours(names: Sequence[str]) -> list[str]:
    """The colour that a line has on every chart, and for others one that no line has."""
    known = {name: _SERIES[name] for name in names if name in _SERIES}
    free = (colour for colour in _COLOURS * (1 + len(names) // 8) if colour not in known.values())
    return [known[name] if name in known else next(free, _QUIET) for name in names]


def _rules(marks: Sequence[Mark], *, several: bool) -> list[Any]:
    """The alarms as lines across a chart."""
    layers = []
    for level, colour in (("note", _NOTE), ("alarm", _ALARM)):
        values = [_of_mark(mark) for mark in marks if mark.level == level][:_MARKS_DRAWN]
        if values:
            layers.append(
                alt.Chart(alt.InlineData(values=values))
                .mark_rule(color=colour, strokeDash=[2, 3], strokeWidth=1.5)
                .encode(x="step:Q", tooltip=_mark_tooltip(several=several))
            )
    return layers


def _of_mark(mark: Mark) -> dict[str, Any]:
    return {"step": mark.step, "alarm": mark.name, "seen": mark.seen[:300], "run": mark.run}


def _mark_tooltip(*, several: bool) -> list[Any]:
    names = ["alarm:N", "seen:N", *(["run:N"] if several else [])]
    return [alt.Tooltip("step:Q", format=","), *(alt.Tooltip(name) for name in names)]


def _tone(rate: Rate) -> str:
    return "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "unsure"


def _within_one(lines: Sequence[Line]) -> bool:
    return all(0 <= value <= 1 for line in lines for _, value in line.points if value is not None)


def _axis(**options: Any) -> Any:
    return alt.Axis(tickCount=5, **options)


def finished(chart: Any, *, height: int = _HEIGHT) -> Specification:
    """A chart as wide as its place, in the page's colours."""
    made: Specification = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding")
    ).to_dict(validate=False)
    made.pop("config", None)  # the page's colours, which change with the reader's
    return made
