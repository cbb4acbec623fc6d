"""One run, or several side by side, as one page: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from preftune.report.html.components import NOTHING, listed, panel, panels
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.reading.run_files import Run
from preftune.report.reading.seeds import Seeds
from preftune.report.run import charts
from preftune.report.run.answers import answers_section, entry_of
from preftune.report.run.data import data_section, settings_section
from preftune.report.run.evaluation import evaluation_section
from preftune.report.run.headline import (
    Rate,
    asked,
    cautions,
    example,
    headline,
    headline_over_seeds,
    judged_unlike,
    last,
    missing_files,
    next_steps,
    ranking,
    spreads,
    verdict_name,
    win_rate,
)
from preftune.report.run.settings import differing_settings
from preftune.report.run.training import training_section
from preftune.storage.untrusted_json import Figures, number
from preftune.version import __version__

_MOST_BYTES = 2_950_000
"""A page stays under 3 MB."""
_SHARES = (1.0, 0.6, 0.3, 0.1, 0.02)
"""Of the usual answers and points, one after the other until a page is small enough."""
_SHOWN_CAUTIONS = 4
_SETTINGS = 8
"""Columns of settings that differ between runs."""
_CLAMPED = 700
"""Characters of a text on the first screen, of which a few lines are seen."""


def run_page(runs: Sequence[Run], *, audit: Figures | None = None, seeds: Seeds | None = None) -> str:
    """The page of these runs, in their order.

    Args:
        audit: what `preftune audit` wrote about the data of all of them, if requested.
        seeds: the figures over all runs, where they are one training with several seeds.
    """
    for share in _SHARES:
        page = _page(runs, audit, seeds, share)
        if len(page.encode("utf-8", "replace")) <= _MOST_BYTES:
            break
    return page


def _page(runs: Sequence[Run], audit: Figures | None, seeds: Seeds | None, share: float) -> str:
    title = seeds.name if seeds is not None else runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page = Page(f"{title} · preftune report", styles=["run.css"], share=share)
    sections = [
        ("result", "Did it get better?", evaluation_section(page, runs)),
        ("training", "Training", training_section(page, runs)),
        ("answers", "Before and after", answers_section(page, runs)),
        ("data", "Data", data_section(page, runs, audit)),
        ("settings", "Settings", settings_section(runs)),
    ]
    if seeds is not None:
        header = _over_seeds(page, runs, seeds)
    else:
        header = _one(page, runs[0]) if len(runs) == 1 else _several(page, runs)
    return page.render(markup("components.body", header, sections, __version__, _beside_verdict(runs)))


def _one(page: Page, run: Run) -> Markup:
    """Verdict, interval and one before and after, on the first screen of a phone."""
    lines, chart = headline(run), NOTHING
    if lines.rate is not None:
        label = f"Win rate {lines.rate.rate:.1%}, {lines.interval}. Lines at 50% and at the 55% bar."
        chart = page.chart("verdict", charts.rates({"": lines.rate}, bare=True), label=label)
    return markup(
        "run.one", run.name, lines.tone, lines.word, lines.rest, lines.interval, chart, _example(run), asked(run)
    )


def _over_seeds(page: Page, runs: Sequence[Run], seeds: Seeds) -> Markup:
    """The verdict over all seeds; no seed is singled out."""
    lines, chart = headline_over_seeds(seeds, len(runs)), NOTHING
    if lines.rate is not None:
        rates = {"all seeds": lines.rate} | {run.name: rate for run in runs if (rate := win_rate(run)) is not None}
        label = "; ".join(f"{name}: {one.rate:.1%} ({one.low:.1%} to {one.high:.1%})" for name, one in rates.items())
        chart = page.chart("verdict", charts.rates(rates), label=f"Win rates. {label}")
    words = Markup("").join([_comparison(runs), panels(panel("Over all seeds", "", listed(spreads(seeds)), full=True))])
    return markup(
        "run.one", seeds.name, lines.tone, lines.word, lines.rest, lines.interval, chart, words, asked(runs[0])
    )


def _several(page: Page, runs: Sequence[Run]) -> Markup:
    rated: list[tuple[Run, Rate]] = [(run, rate) for run in runs if (rate := win_rate(run)) is not None]
    if not rated:
        return markup("run.several", runs, None, None, [], NOTHING, NOTHING, _comparison(runs))
    best, rate = max(rated, key=lambda pair: pair[1].rate)
    near = [run.name for run, one in rated if run is not best and one.high >= rate.low]
    label = "; ".join(f"{run.name}: {one.rate:.1%} ({one.low:.1%} to {one.high:.1%})" for run, one in rated)
    chart = page.chart("verdict", charts.rates({run.name: one for run, one in rated}), label=f"Win rates. {label}")
    return markup("run.several", runs, best, headline(best), near, chart, _example(best), _comparison(runs))


def _example(run: Run) -> Markup:
    found = example(run)
    if found is None:
        return NOTHING
    caption, answer = found
    return markup("run.example", caption, entry_of(answer, before=run.before), _CLAMPED)


def _comparison(runs: Sequence[Run]) -> Markup:
    """One row per run, the best by the held-out measure first, with a column for every setting that differs."""
    found = differing_settings(runs)[:_SETTINGS]
    measure, ranked = ranking(runs)
    header = ["run", *(row.name for row in found), "verdict", "win rate", "95% interval"]
    header += ["held-out margin", "accuracy", "held-out loss", "alarms"]
    rows = []
    for run in ranked:
        rate, verdict = win_rate(run), verdict_name(run)
        alarms = sum(alarm.get("level") == "alarm" for alarm in run.alarms)
        rows.append(
            [
                run.name,
                *(row.values[runs.index(run)] for row in found),
                verdict or headline(run).word.rstrip(":,"),
                _shown(rate and rate.rate, ".1%"),
                f"{rate.low:.1%} to {rate.high:.1%}" if rate else "",
                _shown(last(run, "eval_rewards/margins"), ".2f"),
                _shown(last(run, "eval_rewards/accuracies"), ".1%"),
                _shown(last(run, "eval_loss"), ".4f"),
                str(alarms),
            ]
        )
    return markup("run.compared", measure, header, rows)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _beside_verdict(runs: Sequence[Run]) -> Markup:
    """What must be known besides the verdict, what to do next, and what could not be read."""
    parts = []
    several = len(runs) > 1
    most = 2 if several else _SHOWN_CAUTIONS
    known = [f"{run.name}: {line}" if several else line for run in runs for line in cautions(run)[:most]]
    known = [*filter(None, [judged_unlike(runs)]), *known]
    steps = [f"{run.name}: {line}" if several else line for run in runs for line in next_steps(run)]
    alone = not (known and steps)
    cards = [panel("Please note", "", listed(known), full=alone)] if known else []
    if steps:
        cards.append(panel("Next", "", listed(steps, ordered=True), full=alone))
    if cards:
        parts += [Markup('<h2 class="unseen">What to know and what to do</h2>'), panels(*cards)]
    unread = list(missing_files(runs))
    if unread:
        parts.append(markup("run.note", "Not everything could be read.", listed(unread)))
    if all(number(run.summary.get("win_rate")) is None for run in runs) and any(run.summary for run in runs):
        parts.append(markup("run.note", "", "The evaluation holds no win rate that this version can read."))
    return NOTHING.join(parts)
