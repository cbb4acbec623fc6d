"""The chart of reward against KL: a point for every trial, with intervals along both axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from preftune.comparison.result import Result, Tried
from preftune.report.run.charts import Specification, finished

_COLOURS = tuple(f"var(--run-{number})" for number in range(1, 9))
_LABELLED = 4
"""Most methods for which every point is labelled with its settings."""
_HEIGHT = 320


def frontier(result: Result) -> Specification | None:
    """The chart of each trial's reward and KL on the prompts for choosing settings; None if no trial was measured.

    The reward is the gold reward of the samples on which the KL was measured; without a gold reward, the win rate
    against the start.
    """
    rows = [_row(trial, gold=result.gold is not None) for trial in result.tried if trial.distance is not None]
    if not rows:
        return None
    name = "gold reward of samples" if result.gold else "win rate against the start"
    axis = alt.Axis(tickCount=5) if result.gold else alt.Axis(tickCount=5, format="%")
    x = alt.X("kl:Q", title="KL to the start, nats per answer", axis=alt.Axis(tickCount=5, grid=False))
    y = alt.Y("reward:Q", title=name, scale=alt.Scale(zero=False), axis=axis)
    titles = [method.title for method in result.methods]
    colour = alt.Color(
        "method:N",
        scale=alt.Scale(domain=titles, range=[_COLOURS[n % len(_COLOURS)] for n in range(len(titles))]),
        legend=alt.Legend(orient="top", title=None, symbolType="circle"),
    )
    form = ".3~f" if result.gold else ".1%"
    tooltip = [
        *(alt.Tooltip(name) for name in ("method:N", "settings:N")),
        alt.Tooltip("kl:Q", format=".2f"),
        alt.Tooltip("reward:Q", format=form),
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(color=colour, tooltip=tooltip)
    layers = [
        base.mark_rule(opacity=0.35).encode(x=x, y=alt.Y("low:Q", title=name, axis=axis), y2="high:Q"),
        base.mark_rule(opacity=0.35).encode(x="kl_low:Q", x2="kl_high:Q", y=y),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, shape=alt.Shape("method:N", legend=None)),
    ]
    if len(titles) <= _LABELLED:
        layers.append(base.mark_text(align="left", dx=9, dy=-9, fontSize=11).encode(x=x, y=y, text="label:N"))
    return finished(alt.layer(*layers), height=_HEIGHT)


def _row(trial: Tried, *, gold: bool) -> dict[str, Any]:
    assert trial.distance is not None
    kl, reward = trial.distance["kl"], trial.distance["gold"]
    if gold and reward is not None:
        height = (reward["mean"], reward["low"], reward["high"])
    else:
        assert trial.win_rate is not None
        height = (trial.win_rate.win_rate, trial.win_rate.ci_low, trial.win_rate.ci_high)
    return {
        "method": trial.method.title,
        "settings": trial.label,
        "label": trial.label + (" (chosen)" if trial.chosen else ""),
        "kl": _rounded(kl["mean"]),
        "kl_low": _rounded(kl["low"]),
        "kl_high": _rounded(kl["high"]),
        **dict(zip(("reward", "low", "high"), map(_rounded, height), strict=True)),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def described(tried: Sequence[Tried]) -> str:
    """The alternative text of the chart."""
    points = [
        f"{trial.method.title} {trial.label}: KL {trial.distance['kl']['mean']:.2f}"
        for trial in tried
        if trial.distance is not None
    ]
    return "Reward over KL to the start. " + "; ".join(points)
