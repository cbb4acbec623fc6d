"""The plots: reward against KL, and the lexicon that nothing optimised against the reward that was optimised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

NAMES = {"dpo": "DPO", "ppo": "PPO", "best_of": "best of n"}
_COLOURS = {"DPO": "#1b6ca8", "PPO": "#c8553d", "best of n": "#6b6b6b"}
_WIDTH, _HEIGHT = 520, 360


def write_plots(result: Mapping[str, Any], folder: Path) -> None:
    """frontier and hacking, each as SVG and PNG."""
    for name, chart in (("frontier", frontier_chart(result)), ("hacking", hacking_chart(result))):
        chart.save(str(folder / f"{name}.svg"))
        chart.save(str(folder / f"{name}.png"), scale_factor=2)


def frontier_chart(result: Mapping[str, Any]) -> Any:
    """Gold reward over KL: a line per strength, a mark per point, bars of one standard deviation over seeds."""
    rows = _rows(result, "reward", "kl")
    best_of = [
        {
            "method": NAMES["best_of"],
            "kl": row["kl"],
            "reward": row["reward"],
            "strength": "best of n",
            "order": row["n"],
        }
        for row in result["baseline"]["best_of"]
    ]
    x = alt.X("kl:Q", title="KL to the reference, nats per completion", scale=alt.Scale(type="sqrt", zero=True))
    y = alt.Y("reward:Q", title="gold reward, log-odds", scale=alt.Scale(zero=False))
    colour = _colour([*rows, *best_of])
    base = alt.Chart(alt.InlineData(values=[*rows, *best_of])).encode(color=colour)
    begin = {"kl": 0, "reward": result["baseline"]["reward"], "order": 0}
    begins = [{**row, **begin} for row in (*(r for r in rows if r["order"] == 1), best_of[0])]
    paths = alt.Chart(alt.InlineData(values=[*begins, *rows, *best_of])).encode(color=colour)
    lines = paths.mark_line(strokeWidth=1.5, opacity=0.7).encode(x=x, y=y, detail="strength:N", order="order:Q")
    marks = base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, shape=alt.Shape("method:N", legend=None))
    start = (
        alt.Chart(alt.InlineData(values=[{"kl": 0, "reward": result["baseline"]["reward"], "text": "reference"}]))
        .mark_text(align="left", dx=8, dy=12)
        .encode(x="kl:Q", y="reward:Q", text="text:N")
    )
    layers = (*_bars(rows, "kl", "reward", colour), lines, marks, _labels(rows, x, y, colour), start)
    return finished(alt.layer(*layers), legend="bottom-right")  # best of n rises on the left


def hacking_chart(result: Mapping[str, Any]) -> Any:
    """VADER over gold reward, both as rises in standard deviations of the reference's; the line is equal rises."""
    rows = _rows(result, "vader_gain", "reward_gain")
    top = max((row["reward_gain"] for row in rows), default=1.0)
    x = alt.X("reward_gain:Q", title="rise of the gold reward, standard deviations of the reference's")
    y = alt.Y("vader_gain:Q", title="rise of VADER, standard deviations of the reference's")
    colour = _colour(rows)
    base = alt.Chart(alt.InlineData(values=rows)).encode(color=colour)
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(x=x, y=y, detail="strength:N", order="order:Q")
    marks = base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, shape=alt.Shape("method:N", legend=None))
    equal = (
        alt.Chart(alt.InlineData(values=[{"reward_gain": 0, "vader_gain": 0}, {"reward_gain": top, "vader_gain": top}]))
        .mark_line(strokeDash=[4, 3], color="#999999")
        .encode(x="reward_gain:Q", y="vader_gain:Q")
    )
    return finished(alt.layer(equal, lines, marks, _labels(rows, x, y, colour, slanted=True)), legend="top-left")


def _rows(result: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """One row per point of the curves, with the ends of its bars."""
    rows = []
    for curve in result["summary"]["curves"]:
        strength = f"{'beta' if curve['method'] == 'dpo' else 'target'} {curve['strength']:g}"
        for order, point in enumerate(curve["points"], start=1):
            row = {"method": NAMES[curve["method"]], "strength": strength, "order": order}
            row["end"] = strength if order == len(curve["points"]) else ""
            for name in names:
                row[name] = point[name]
                spread = point.get(f"{name}_deviation", 0.0)
                row[f"{name}_low"], row[f"{name}_high"] = point[name] - spread, point[name] + spread
            row["kl_low"] = max(0.0, row.get("kl_low", 0.0))
            rows.append(row)
    return rows


def _labels(rows: list[dict[str, Any]], x: Any, y: Any, colour: Any, *, slanted: bool = False) -> Any:
    """The strength at the end of every line: of DPO on its left, of PPO on its right; slanted, DPO's downwards, where
    the ends stand beside each other.
    """
    dpo: dict[str, Any] = {"align": "right", "dx": -8, "dy": -8}
    if slanted:
        dpo = {"align": "left", "dx": 10, "dy": 6, "angle": 50}
    places = {NAMES["dpo"]: dpo, NAMES["ppo"]: {"align": "left", "dx": 8, "dy": -8}}
    return alt.layer(
        *(
            alt.Chart(alt.InlineData(values=[row for row in rows if row["end"] and row["method"] == method]))
            .mark_text(fontSize=11, **place)
            .encode(x=x, y=y, text="end:N", color=colour)
            for method, place in places.items()
        )
    )


def _bars(rows: list[dict[str, Any]], x: str, y: str, colour: Any) -> tuple[Any, Any]:
    """Rules from low to high, along both axes."""
    base = alt.Chart(alt.InlineData(values=rows)).mark_rule(opacity=0.5).encode(color=colour)
    return (
        base.encode(x=f"{x}:Q", y=f"{y}_low:Q", y2=f"{y}_high:Q"),
        base.encode(x=f"{x}_low:Q", x2=f"{x}_high:Q", y=f"{y}:Q"),
    )


def _colour(rows: list[dict[str, Any]]) -> Any:
    shown = [name for name in _COLOURS if any(row["method"] == name for row in rows)]
    scale = alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values()))
    return alt.Color("method:N", title=None, scale=scale, legend=alt.Legend(values=shown, symbolType="circle"))


def finished(chart: Any, *, legend: str) -> Any:
    return (
        chart.properties(width=_WIDTH, height=_HEIGHT, background="white")
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", gridColor="#eeeeee")
        .configure_legend(labelFontSize=12, orient=legend)
        .configure_view(strokeWidth=0)
    )
