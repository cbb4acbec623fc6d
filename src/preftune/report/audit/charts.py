"""The charts of an audit, by Altair, from the figures in audit.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

Figures = Mapping[str, Any]
Specification = dict[str, Any]

_HEIGHT = 190
_QUIET, _LIMIT, _FOUND, _OTHER = "var(--muted)", "var(--error)", "var(--warning)", "var(--other)"
"""Colours of the page, which differ by light and dark."""
_DOT: dict[str, Any] = {"filled": True, "size": 65, "opacity": 1}
_LONGEST = 34
"""Letters of a label on an axis."""


def lengths(figures: Figures) -> Specification:
    """Histograms of chosen and rejected answers, one over the other."""
    bars = [{**bar, "side": side} for side in ("chosen", "rejected") for bar in _bars(figures["histograms"][side])]
    chart = (
        _chart(bars)
        .mark_area(interpolate="step-after", opacity=0.35, line=True)
        .encode(
            x=alt.X("from:Q", title=f"{figures['unit']} of an answer", axis=alt.Axis(tickCount=6)),
            y=alt.Y("pairs:Q", title="pairs", stack=None, axis=alt.Axis(tickCount=4)),
            color=alt.Color("side:N", scale=alt.Scale(domain=["chosen", "rejected"])),
            tooltip=[*_TOOLTIP, alt.Tooltip("side:N")],
        )
    )
    return _finished(chart)


def difference(figures: Figures) -> Specification:
    """Histogram of the difference of lengths, with a line at equal length."""
    bars = _bars(figures["histograms"]["difference"])
    chart = _histogram(bars, f"difference in {figures['unit']}, chosen minus rejected")
    zero = _chart([{"at": 0}]).mark_rule(color=_QUIET, strokeDash=[4, 3]).encode(x="at:Q")
    return _finished(alt.layer(chart, zero))


def prompts(figures: Figures) -> Specification:
    """Histogram of prompts."""
    return _finished(_histogram(_bars(figures["histograms"]["prompt"]), f"{figures['unit']} of a prompt"))


def against_limit(figures: Figures) -> Specification:
    """Histogram of prompt and longer answer, with a line at max_length if there is one."""
    chart = _histogram(_bars(figures["histograms"]["pair"]), f"{figures['unit']} of prompt and longer answer")
    limit = figures.get("max_length")
    if limit is None or figures["unit"] != "tokens":
        return _finished(chart)
    at = [{"at": limit, "label": f"max_length {limit:,}"}]
    line = _chart(at).mark_rule(color=_LIMIT, strokeWidth=1.5).encode(x="at:Q")
    name = _chart(at).mark_text(color=_LIMIT, align="right", dx=-5, y=8).encode(x="at:Q", text="label:N")
    return _finished(alt.layer(chart, line, name))


def shortcuts(figures: Mapping[str, Figures]) -> Specification:
    """Accuracy of every one-feature rule with its interval, and a line at 50%."""
    rows = [
        {
            "rule": _short(str(result["what"])),
            "accuracy": result["accuracy"],
            "low": result["low"],
            "high": result["high"],
            "decides": result["decided"],
            "colour": _FOUND if result["cheat"] else _OTHER,
        }
        for result in sorted(figures.values(), key=lambda result: -abs(result["accuracy"] - 0.5))
    ]
    order = [str(row["rule"]) for row in rows]
    x = alt.X(
        "accuracy:Q",
        title="share of the decided pairs ranked correctly (95% interval)",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", tickCount=5, grid=True),
    )
    y = alt.Y("rule:N", sort=order, title=None, axis=alt.Axis(labelLimit=220, grid=False))
    tooltip = [
        alt.Tooltip("rule:N"),
        *(alt.Tooltip(f"{n}:Q", format=".1%") for n in ("accuracy", "low", "high", "decides")),
    ]
    layers = [_chart([{"half": 0.5}]).mark_rule(color=_QUIET, strokeDash=[4, 3]).encode(x="half:Q")]
    for colour in (_OTHER, _FOUND):
        part = [row for row in rows if row["colour"] == colour]
        if part:
            base = _chart(part).encode(y=y, tooltip=tooltip)
            bar = base.mark_rule(color=colour, strokeWidth=3, opacity=0.45)
            layers += [bar.encode(x="low:Q", x2="high:Q"), base.mark_point(**_DOT, color=colour).encode(x=x)]
    return _finished(alt.layer(*layers), height=30 * len(rows) + 10)


def counted(counts: Mapping[str, int], others: int) -> Specification:
    """Bars of the values of a column, the most frequent first."""
    rows = [{"value": _short(value), "pairs": count} for value, count in counts.items()]
    if others:
        rows.append({"value": "(all others)", "pairs": others})
    order = [str(row["value"]) for row in rows]
    chart = (
        _chart(rows)
        .mark_bar(cornerRadiusEnd=2, height={"band": 0.7})
        .encode(
            x=alt.X("pairs:Q", title="pairs", axis=alt.Axis(tickCount=4, grid=True)),
            y=alt.Y("value:N", sort=order, title=None, axis=alt.Axis(labelLimit=220, grid=False)),
            tooltip=[alt.Tooltip("value:N"), alt.Tooltip("pairs:Q", format=",")],
        )
    )
    return _finished(chart, height=26 * len(rows) + 10)


def spread(histogram: Figures, title: str, *, at: float | None = None) -> Specification:
    """A histogram, with a line at a value that means something."""
    chart = _histogram(_bars(histogram), title, step=0.01)
    if at is None:
        return _finished(chart)
    line = _chart([{"at": at}]).mark_rule(color=_QUIET, strokeDash=[4, 3]).encode(x="at:Q")
    return _finished(alt.layer(chart, line))


_TOOLTIP = [
    alt.Tooltip("from:Q", format=",.4~g"),
    alt.Tooltip("to:Q", format=",.4~g"),
    alt.Tooltip("pairs:Q", format=","),
]


def _histogram(bars: Sequence[Figures], title: str, *, step: float = 1) -> alt.Chart:
    made: alt.Chart = (
        _chart(bars)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("from:Q", title=title, bin="binned", axis=alt.Axis(tickCount=6, grid=False, tickMinStep=step)),
            x2="to:Q",
            y=alt.Y("pairs:Q", title="pairs", axis=alt.Axis(tickCount=4)),
            tooltip=_TOOLTIP,
        )
    )
    return made


def _bars(histogram: Figures) -> list[dict[str, Any]]:
    edges, counts = histogram["edges"], histogram["counts"]
    return [
        {"from": low, "to": high, "pairs": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _chart(values: Sequence[Figures]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(value) for value in values]))


def _finished(chart: Any, *, height: int = _HEIGHT) -> Specification:
    made: Specification = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding")
    ).to_dict()
    made.pop("config", None)  # the page's colours, which change with the reader's
    return made


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
