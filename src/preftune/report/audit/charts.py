"""The charts of an audit, from the figures in audit.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preftune.report.html.vega_lite import Specification, field, finished, layered, mark

Figures = Mapping[str, Any]

_HEIGHT = 190
_QUIET, _LIMIT, _FOUND, _OTHER = "var(--muted)", "var(--error)", "var(--warning)", "var(--other)"
"""Colours of the page, which differ by light and dark."""
_DOT: dict[str, Any] = {"filled": True, "size": 65, "opacity": 1}
_LONGEST = 34
"""Letters of a label on an axis."""


def lengths(figures: Figures) -> Specification:
    """Histograms of chosen and rejected answers, one over the other."""
    bars = [{**bar, "side": side} for side in ("chosen", "rejected") for bar in _bars(figures["histograms"][side])]
    encoding = {
        "x": field("from:Q", title=f"{figures['unit']} of an answer", axis={"tickCount": 6}),
        "y": field("pairs:Q", title="pairs", stack=None, axis={"tickCount": 4}),
        "color": field("side:N", scale={"domain": ["chosen", "rejected"]}),
        "tooltip": [*_TOOLTIP, field("side:N")],
    }
    chart = mark("area", encoding, bars, interpolate="step-after", opacity=0.35, line=True)
    return finished(chart, height=_HEIGHT)


def difference(figures: Figures) -> Specification:
    """Histogram of the difference of lengths, with a line at equal length."""
    bars = _bars(figures["histograms"]["difference"])
    chart = _histogram(bars, f"difference in {figures['unit']}, chosen minus rejected")
    return finished(layered([chart, _line(0)]), height=_HEIGHT)


def prompts(figures: Figures) -> Specification:
    """Histogram of prompts."""
    bars = _bars(figures["histograms"]["prompt"])
    return finished(_histogram(bars, f"{figures['unit']} of a prompt"), height=_HEIGHT)


def against_limit(figures: Figures) -> Specification:
    """Histogram of prompt and longer answer, with a line at max_length if there is one."""
    chart = _histogram(_bars(figures["histograms"]["pair"]), f"{figures['unit']} of prompt and longer answer")
    limit = figures.get("max_length")
    if limit is None or figures["unit"] != "tokens":
        return finished(chart, height=_HEIGHT)
    at = [{"at": limit, "label": f"max_length {limit:,}"}]
    x = {"x": field("at:Q")}
    line = mark("rule", x, at, color=_LIMIT, strokeWidth=1.5)
    name = mark("text", {**x, "text": field("label:N")}, at, color=_LIMIT, align="right", dx=-5, y=8)
    return finished(layered([chart, line, name]), height=_HEIGHT)


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
    title = "share of the decided pairs ranked correctly (95% interval)"
    axis = {"format": "%", "tickCount": 5, "grid": True}
    at = {"x": field("accuracy:Q", title=title, scale={"domain": [0, 1]}, axis=axis)}
    between = {"x": field("low:Q"), "x2": {"field": "high"}}
    encoding = {
        "y": field("rule:N", sort=order, title=None, axis={"labelLimit": 220, "grid": False}),
        "tooltip": [
            field("rule:N"),
            *(field(f"{one}:Q", format=".1%") for one in ("accuracy", "low", "high", "decides")),
        ],
    }
    layers = [mark("rule", {"x": field("half:Q")}, [{"half": 0.5}], color=_QUIET, strokeDash=[4, 3])]
    for colour in (_OTHER, _FOUND):
        part = [row for row in rows if row["colour"] == colour]
        if part:
            layers.append(mark("rule", {**encoding, **between}, part, color=colour, strokeWidth=3, opacity=0.45))
            layers.append(mark("point", {**encoding, **at}, part, **_DOT, color=colour))
    return finished(layered(layers), height=30 * len(rows) + 10)


def counted(counts: Mapping[str, int], others: int) -> Specification:
    """Bars of the values of a column, the most frequent first."""
    rows = [{"value": _short(value), "pairs": count} for value, count in counts.items()]
    if others:
        rows.append({"value": "(all others)", "pairs": others})
    order = [str(row["value"]) for row in rows]
    encoding = {
        "x": field("pairs:Q", title="pairs", axis={"tickCount": 4, "grid": True}),
        "y": field("value:N", sort=order, title=None, axis={"labelLimit": 220, "grid": False}),
        "tooltip": [field("value:N"), field("pairs:Q", format=",")],
    }
    chart = mark("bar", encoding, rows, cornerRadiusEnd=2, height={"band": 0.7})
    return finished(chart, height=26 * len(rows) + 10)


def spread(histogram: Figures, title: str, *, at: float | None = None) -> Specification:
    """A histogram, with a line at a value that means something."""
    chart = _histogram(_bars(histogram), title, step=0.01)
    return finished(chart if at is None else layered([chart, _line(at)]), height=_HEIGHT)


_TOOLTIP = [field("from:Q", format=",.4~g"), field("to:Q", format=",.4~g"), field("pairs:Q", format=",")]


def _histogram(bars: Sequence[Figures], title: str, *, step: float = 1) -> Specification:
    axis = {"tickCount": 6, "grid": False, "tickMinStep": step}
    encoding = {
        "x": field("from:Q", title=title, bin="binned", axis=axis),
        "x2": {"field": "to"},
        "y": field("pairs:Q", title="pairs", axis={"tickCount": 4}),
        "tooltip": _TOOLTIP,
    }
    return mark("bar", encoding, bars, binSpacing=1)


def _line(at: float) -> Specification:
    return mark("rule", {"x": field("at:Q")}, [{"at": at}], color=_QUIET, strokeDash=[4, 3])


def _bars(histogram: Figures) -> list[dict[str, Any]]:
    edges, counts = histogram["edges"], histogram["counts"]
    return [
        {"from": low, "to": high, "pairs": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
