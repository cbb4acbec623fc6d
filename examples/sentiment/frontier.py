"""From runs to statements: who rose how far, the frontier of reward against KL, and what the second lexicon says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from preftune.statistics.intervals import mean_interval

KL_LEVELS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
"""Nats at which frontiers are compared."""
_FIGURES = ("reward", "kl", "vader", "tokens", "finished", "repeated")
Record = Mapping[str, Any]


def summarise(records: Sequence[Record], baseline: Record, *, kl_limit: float) -> dict[str, Any]:
    """All statements about the runs, as plain values.

    Args:
        records: one per run.
        baseline: of the reference.
        kl_limit: nats; up to here a rise counts.
    """
    methods = list(dict.fromkeys(record["method"] for record in records))
    return {
        "kl_limit": kl_limit,
        "rise": {method: rise(_of(records, method), baseline, kl_limit) for method in methods},
        "curves": [curve for method in methods for curve in curves(_of(records, method), baseline)],
        "frontier": frontier(records, methods, baseline),
    }


def rise(records: Sequence[Record], baseline: Record, kl_limit: float) -> dict[str, Any]:
    """By how many standard deviations of the reference's reward a method's best point within the limit lies above the
    reference's mean, seed by seed.

    `lower` is the same for the lower end of that point's interval: two standard errors below its mean.
    """
    seeds = {}
    for seed in sorted({record["seed"] for record in records}):
        within = [
            (point, record["strength"])
            for record in records
            if record["seed"] == seed
            for point in record["points"]
            if point["kl"] <= kl_limit
        ]
        if not within:
            seeds[str(seed)] = None
            continue
        best, strength = max(within, key=lambda pair: pair[0]["reward"])
        seeds[str(seed)] = {
            "deviations": round(_gain(best["reward"], baseline), 3),
            "lower": round(_gain(best["reward"] - 2 * best["reward_error"], baseline), 3),
            "kl": best["kl"],
            "strength": strength,
            "step": best["step"],
        }
    above = [seed is not None and seed["lower"] > 1 for seed in seeds.values()]
    return {"seeds": seeds, "above_one_on_all_seeds": all(above)}


def curves(records: Sequence[Record], baseline: Record) -> list[dict[str, Any]]:
    """Each strength's points in the order of training: mean and standard deviation over seeds."""
    made = []
    for strength in sorted({record["strength"] for record in records}):
        same = [record["points"] for record in records if record["strength"] == strength]
        points = []
        for at in zip(*same, strict=True):  # the same share of training, one point per seed
            point: dict[str, Any] = {"share": at[0]["share"], "seeds": len(at)}
            for name in _FIGURES:
                values = [point[name] for point in at]
                point[name] = round(float(np.mean(values)), 4)
                # one seed has no deviation over seeds: what is left is the error of its own samples
                spread = np.std(values, ddof=1) if len(at) > 1 else at[0][f"{name}_error"]
                point[f"{name}_deviation"] = round(float(spread), 4)
            point["reward_gain"] = round(_gain(point["reward"], baseline), 4)
            point["vader_gain"] = round((point["vader"] - baseline["vader"]) / baseline["vader_deviation"], 4)
            points.append(point)
        made.append({"method": records[0]["method"], "strength": strength, "points": points})
    return made


def frontier(records: Sequence[Record], methods: Sequence[str], baseline: Record) -> list[dict[str, Any]]:
    """What each method has bought at a KL: the best of its runs there, seed by seed, as rises in standard deviations.

    Where there are two methods and several seeds that came so far, also the first's minus the second's with its 95%
    interval.
    """
    rows = []
    for level in KL_LEVELS:
        row: dict[str, Any] = {"kl": level}
        best = {method: _best_at(_of(records, method), level, baseline) for method in methods}
        for method, values in best.items():
            known = list(values.values())
            row[method] = {
                "mean": round(float(np.mean(known)), 3) if known else None,
                "deviation": round(float(np.std(known, ddof=1)), 3) if len(known) > 1 else None,
                "seeds": len(known),
            }
        if len(methods) == 2:
            one, other = (best[method] for method in methods)
            seeds = sorted(one.keys() & other.keys())
            if len(seeds) > 1:
                row["difference"] = difference([one[seed] - other[seed] for seed in seeds])
        rows.append(row)
    return rows


def rise_at(record: Record, level: float, baseline: Record) -> float | None:
    """The rise of one run where its path, which begins at the reference, has this KL; the best if it was there often,
    None if it never was.

    Between two measured points it lies on a line over the square root of the KL: near the reference the best reward
    grows like that (Gao et al. 2023, arXiv:2210.10760), and so the plot draws it.
    """
    root = math.sqrt(level)
    path = [(0.0, 0.0)]
    path += [(math.sqrt(max(0.0, point["kl"])), _gain(point["reward"], baseline)) for point in record["points"]]
    found = [
        low + (high - low) * (root - before) / (after - before)
        for (before, low), (after, high) in pairwise(path)
        if before != after and min(before, after) <= root <= max(before, after)
    ]
    return max(found, default=None)


def difference(values: Sequence[float]) -> dict[str, Any]:
    """A difference over seeds, with its t interval; an interval that holds zero shows no difference."""
    interval = mean_interval(values)
    shown = interval.low > 0 or interval.high < 0
    return {
        "mean": round(interval.mean, 3),
        "low": round(interval.low, 3),
        "high": round(interval.high, 3),
        "shown": shown,
    }


def _best_at(records: Sequence[Record], level: float, baseline: Record) -> dict[int, float]:
    """The best rise of each seed at a KL; seeds that were never there are left out."""
    best: dict[int, float] = {}
    for record in records:
        rise = rise_at(record, level, baseline)
        if rise is not None:
            best[record["seed"]] = max(rise, best.get(record["seed"], -np.inf))
    return best


def _gain(reward: float, baseline: Record) -> float:
    return float((reward - baseline["reward"]) / baseline["reward_deviation"])


def _of(records: Sequence[Record], method: str) -> list[Record]:
    return [record for record in records if record["method"] == method]
