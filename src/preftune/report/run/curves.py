"""Which metrics are drawn together, and the points of their lines, thinned so that a page stays small."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from preftune.report.reading.run_files import Run, columns
from preftune.storage.untrusted_json import number, text

Points = list[tuple[int, float | None]]

_ALL_POINTS = 9000
"""On one page, over all lines of all runs; each takes about 70 bytes."""
_FEWEST, _MOST = 40, 400
"""Points of one line."""


class Series(NamedTuple):
    """One line of a chart, in any run: a metric under the name that the legend shows."""

    metric: str
    name: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of metrics over steps."""

    name: str
    title: str
    words: str
    """What to look for, in a sentence."""
    unit: str
    series: tuple[Series, ...]
    format: str = ".3~g"
    """Of d3, for values."""
    zero: bool = False
    share: bool = False
    """Values are shares of 1."""


class Line(NamedTuple):
    """A line that is there: its run, its name in the legend, its points."""

    run: str
    series: str
    points: Points
    thinned: bool


class Mark(NamedTuple):
    """An alarm on the time axis."""

    step: int
    level: str
    name: str
    seen: str
    run: str


def _pair(metric: str) -> tuple[Series, ...]:
    return Series(metric, "training"), Series(f"eval_{metric}", "held out")


PANELS: tuple[Panel, ...] = (
    Panel("score", "Reward",
          "Score of the model's own answers by the training reward, and the same minus the KL penalty. It should rise; "
          "use another judge to measure whether the answers are better.", "points",
          (Series("objective/scores", "reward"), Series("objective/rlhf_reward", "minus the penalty"))),
    Panel("answer-kl", "Distance from the reference, by answer",
          "KL of whole answers, estimated by their log-ratio. A high reward at a high KL is often reward hacking.",
          "nats per answer", (Series("objective/kl", "KL"),), zero=True),
    Panel("loss", "Loss",
                          "Starts at 0.69 for DPO and falls; for PPO it means little. If it rises again on held-out "
                          "pairs, stop earlier.", "nats", _pair("loss")),
    Panel("margin", "Margin", "How much more the model favours chosen over rejected than before training; it should "
          "rise.", "nats, times beta",
          (*_pair("rewards/margins"), Series("guard/margin_held_out", "guard's pairs"))),
    Panel("accuracy", "Accuracy", "Share of pairs whose chosen side the model now favours more. 50% is chance.",
          "of pairs", (*_pair("rewards/accuracies"), Series("guard/accuracy_held_out", "guard's pairs")), ".0%",
          share=True),
    Panel("win-rate", "Win rate against the reference",
          "Share of the held-out prompts for which the judge prefers the model's answer. 50% is an equal model; the "
          "interval is 95%.", "of prompts",
          (Series("eval_win_rate", "win rate"), Series("eval_win_rate_low", "at least"),
           Series("eval_win_rate_high", "at most"), Series("eval_win_rate_length_controlled", "at equal length")),
          ".0%", share=True),
    Panel("rewards", "Rewards", "Chosen should not fall far while rejected falls.", "nats, times beta",
          (Series("rewards/chosen", "chosen"), Series("rewards/rejected", "rejected"))),
    Panel("logps", "Log-probability of the answers",
          "Of whole answers. Chosen falls a little in nearly every run; if it falls far, the model unlearns both.",
          "nats per answer",
          (Series("logps/chosen", "chosen"), Series("logps/rejected", "rejected"))),
    Panel("kl", "Distance from the reference", "KL per token of the model's own answers. A higher beta keeps it low.",
          "nats per token", (Series("guard/kl_per_token", "KL"),), zero=True),
    Panel("entropy", "Entropy", "Variety of its answers. Near 0 it always writes the same answer.", "nats per token",
          (Series("policy/entropy_avg", "entropy"),), zero=True),
    Panel("answer-length", "Length of its answers", "Length of the answers that "
          "it is trained on. If it "
          "grows, the reward may "
          "favour length.", "tokens", (Series("completions/mean_length", "length"),), ",.0f", zero=True),
    Panel("ended", "Answers that came to an end", "max_new_tokens cut the other answers.", "of answers",
          (Series("completions/eos_share", "ended"),), ".0%", share=True),
    Panel("clipped", "Clipped",
          "Share of tokens whose gradient was removed by clipping. Above one half the steps are too large.",
          "of tokens", (Series("policy/clipfrac_avg", "policy"), Series("val/clipfrac_avg", "value")), ".0%",
          share=True),
    Panel("value", "Value function",
          "Share of the returns' variance that the value function predicts. 1 is all; below 0 is worse than predicting "
          "their mean.", "explained", (Series("val/var_explained", "explained"),), ".2f"),
    Panel("guard-length", "Length of its answers", "Against the reference's answers to the same prompts; 1 is as long.",
          "times the reference", (Series("guard/length_ratio", "length"),), zero=True),
    Panel("repetition", "Repetition", "Share of words inside repeated phrases, in the model's own answers.", "of words",
          (Series("guard/repeated", "model"), Series("guard/repeated_reference", "reference")), ".1~%", True, True),
    Panel("variety", "Variety", "Distinct word pairs in its answers, and answers ended by the model.", "share",
          (Series("guard/distinct_2", "distinct pairs"), Series("guard/finished", "ended"),
           Series("guard/self_similarity", "similar to each other")), ".0%", share=True),
    Panel("lengths", "Length of the training answers",
          "Length of the answers in the data. If the sides differ much, the model may learn length.", "tokens",
          (Series("completions/chosen_length", "chosen"), Series("completions/rejected_length", "rejected")),
          ",.0f", zero=True),
    Panel("gradient", "Gradient norm", "Norm before clipping. Spikes often precede divergence.", "norm",
          (Series("grad_norm", "norm"),), zero=True),
    Panel("learning-rate", "Learning rate", "As set by the schedule.", "rate", (Series("learning_rate", "rate"),),
          ".2~e", zero=True),
    Panel("speed", "Speed", "Tokens trained per second, without evaluation.", "tokens per second",
          (Series("tokens_per_second", "tokens"),), ",.0f", zero=True),
    Panel("memory", "Memory", "Maximum so far, of the process or the device.", "GB",
          (Series("memory/peak_gb", "peak"),), ".2f", zero=True),
)  # fmt: skip

_HELD_OUT = re.compile(r"eval_(?P<set>.+?)_(?P<metric>loss|rewards/margins|rewards/accuracies|win_rate)$")
"""Metrics of one of several held-out sets, as transformers names them."""


def lines_of(runs: Sequence[Run], *, share: float = 1.0) -> dict[str, list[Line]]:
    """Panel's name -> its lines in all runs; panels without any point are left out.

    Args:
        share: of the points that are usually drawn.
    """
    found = [(panel, run, series, points) for run in runs for panel, series, points in _of_run(run)]
    limit = max(round(_FEWEST * share), 3, min(_MOST, round(_ALL_POINTS * share) // max(1, len(found))))
    lines: dict[str, list[Line]] = {panel.name: [] for panel in PANELS}
    for panel, run, series, points in found:
        kept = thinned(points, limit)
        lines[panel.name].append(Line(run.name, series.name, kept, len(kept) < len(points)))
    return {name: drawn for name, drawn in lines.items() if drawn}


def _of_run(run: Run) -> Iterator[tuple[Panel, Series, Points]]:
    table = columns(run.metrics)
    for panel in PANELS:
        for series in (*panel.series, *_held_out_sets(table, panel)):
            points = table.get(series.metric, [])
            if any(value is not None for _, value in points):
                yield panel, series, points


def _held_out_sets(table: dict[str, Points], panel: Panel) -> Iterator[Series]:
    plain = {series.metric for series in panel.series}
    for metric in table:
        match = _HELD_OUT.match(metric)
        if match and plain & {match["metric"], f"eval_{match['metric']}"} and metric not in plain:
            yield Series(metric, f"held out: {match['set']}")


def thinned(points: Points, limit: int) -> Points:
    """At most about `limit` points: of every stretch its first, lowest and highest, so that no spike is lost."""
    if len(points) <= limit:
        return points
    width = -(-len(points) * 3 // limit)
    kept: Points = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        finite = [(value, index) for index, (_, value) in enumerate(stretch) if value is not None]
        places = {0} | ({min(finite)[1], max(finite)[1]} if finite else set())
        kept += [stretch[place] for place in sorted(places)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def marks_of(runs: Sequence[Run]) -> list[Mark]:
    """The guard's alarms of all runs, in the order of their steps."""
    marks = [
        Mark(
            step=int(number(alarm.get("step")) or 0),
            level="note" if alarm.get("level") == "note" else "alarm",
            name=text(alarm.get("name")).replace("-", " "),
            seen=text(alarm.get("seen")),
            run=run.name,
        )
        for run in runs
        for alarm in run.alarms
    ]
    return sorted(marks, key=lambda mark: mark.step)
