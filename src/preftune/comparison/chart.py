"""The chart of reward against KL: a point for every trial, with intervals along both axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preftune.comparison.result import Result, Tried
from preftune.report.html.vega_lite import Specification, field, finished, layered, mark

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
    axis = {"tickCount": 5} if result.gold else {"tickCount": 5, "format": "%"}
    x = {"x": field("kl:Q", title="KL to the start, nats per answer", axis={"tickCount": 5, "grid": False})}
    y = {"y": field("reward:Q", title=name, scale={"zero": False}, axis=axis)}
    titles = [method.title for method in result.methods]
    colours = {"domain": titles, "range": [_COLOURS[n % len(_COLOURS)] for n in range(len(titles))]}
    legend = {"orient": "top", "title": None, "symbolType": "circle"}
    encoding = {
        "color": field("method:N", scale=colours, legend=legend),
        "tooltip": [
            *map(field, ("method:N", "settings:N")),
            field("kl:Q", format=".2f"),
            field("reward:Q", format=".3~f" if result.gold else ".1%"),
        ],
    }
    between_rewards = {"y": field("low:Q", title=name, axis=axis), "y2": {"field": "high"}}
    between_kls = {"x": field("kl_low:Q"), "x2": {"field": "kl_high"}}
    shape = {"shape": field("method:N", legend=None)}
    layers = [
        mark("rule", {**encoding, **x, **between_rewards}, opacity=0.35),
        mark("rule", {**encoding, **between_kls, **y}, opacity=0.35),
        mark("point", {**encoding, **x, **y, **shape}, filled=True, size=90, opacity=1),
    ]
    if len(titles) <= _LABELLED:
        label = {"text": field("label:N")}
        layers.append(mark("text", {**encoding, **x, **y, **label}, align="left", dx=9, dy=-9, fontSize=11))
    return finished(layered(layers, rows), height=_HEIGHT)


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
