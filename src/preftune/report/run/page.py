"""One run, or several side by side, as one page: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from preftune.report.html.components import listed, panel, panels
from preftune.report.html.document import Page, escaped, table
from preftune.report.reading.run_files import Run
from preftune.report.reading.untrusted_json import Figures, number, text
from preftune.report.run import charts
from preftune.report.run.answers import answers_section, entry_of, side_block
from preftune.report.run.data import data_section, settings_section
from preftune.report.run.evaluation import evaluation_section
from preftune.report.run.headline import (
    Rate,
    asked,
    cautions,
    example,
    headline,
    judged_unlike,
    last,
    missing_files,
    next_steps,
    ranking,
    win_rate,
)
from preftune.report.run.settings import differing_settings
from preftune.report.run.training import training_section
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


def run_page(runs: Sequence[Run], *, audit: Figures | None = None) -> str:
    """The page of these runs, in their order.

    Args:
        audit: what `preftune audit` wrote about the data of all of them, if it was asked for.
    """
    for share in _SHARES:
        page = _page(runs, audit, share)
        if len(page.encode("utf-8", "replace")) <= _MOST_BYTES:
            break
    return page


def _page(runs: Sequence[Run], audit: Figures | None, share: float) -> str:
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    page = Page(f"{title} · preftune report", styles=["run.css"], share=share)
    sections = [
        ("result", "Did it get better?", evaluation_section(page, runs)),
        ("training", "Training", training_section(page, runs)),
        ("answers", "Before and after", answers_section(page, runs)),
        ("data", "Data", data_section(page, runs, audit)),
        ("settings", "Settings", settings_section(runs)),
    ]
    present = [(name, heading, markup) for name, heading, markup in sections if markup]
    page.add("<header>", *(_one(page, runs[0]) if len(runs) == 1 else _several(page, runs)), "</header>")
    links = "".join(f'<a href="#{name}">{escaped(heading)}</a>' for name, heading, _ in present)
    page.add(f'<nav aria-label="Sections">{links}</nav>', "<main>", *_beside_verdict(runs))
    for name, heading, markup in present:
        page.add(f'<section class="part-of-page" id="{name}" aria-labelledby="{name}-heading">')
        page.add(f'<h2 id="{name}-heading">{escaped(heading)}</h2>', markup, "</section>")
    page.add("</main>", f"<footer><p>preftune {escaped(__version__)}. This page is one file and needs no network.</p>")
    page.add("</footer>")
    return page.render()


def _one(page: Page, run: Run) -> Iterator[str]:
    """Verdict, interval and one before and after, on the first screen of a phone."""
    lines = headline(run)
    yield f'<p class="brand"><strong>preftune</strong> {escaped(run.name)}</p>'
    yield f'<h1><span class="tone-{lines.tone}">{escaped(lines.word)}</span> {escaped(lines.rest)}</h1>'
    if lines.rate is not None:
        yield f'<p class="interval">{escaped(lines.interval)}</p>'
        told = f"Win rate {lines.rate.rate:.1%}, {lines.interval}. Lines at 50% and at the 55% bar."
        yield '<div class="strip">'
        yield page.chart("verdict", charts.rates({"": lines.rate}, bare=True), label=told)
        yield "</div>"
    yield from _example(run)
    what = asked(run)
    if what:
        yield f'<p class="asked">{escaped(what)}</p>'


def _several(page: Page, runs: Sequence[Run]) -> Iterator[str]:
    rated: list[tuple[Run, Rate]] = [(run, rate) for run in runs if (rate := win_rate(run)) is not None]
    yield f'<p class="brand"><strong>preftune</strong> {escaped(", ".join(run.name for run in runs))}</p>'
    if rated:
        best, rate = max(rated, key=lambda pair: pair[1].rate)
        lines = headline(best)
        yield f'<h1><span class="tone-{lines.tone}">{escaped(best.name)}</span> wins most: {rate.rate:.1%}</h1>'
        yield f'<p class="interval">{escaped(lines.interval)}{_overlap(rate, best, rated)}</p>'
        told = "; ".join(f"{run.name}: {one.rate:.1%} ({one.low:.1%} to {one.high:.1%})" for run, one in rated)
        yield '<div class="strip">'
        yield page.chart("verdict", charts.rates({run.name: one for run, one in rated}), label=f"Win rates. {told}")
        yield "</div>"
        yield from _example(best)
    else:
        yield f"<h1>{len(runs)} runs <span class='tone-none'>side by side</span></h1>"
    yield _comparison(runs)


def _overlap(rate: Rate, best: Run, rated: Sequence[tuple[Run, Rate]]) -> str:
    near = [run.name for run, one in rated if run is not best and one.high >= rate.low]
    return escaped(f" Its interval overlaps with those of {', '.join(near)}.") if near else ""


def _example(run: Run) -> Iterator[str]:
    found = example(run)
    if found is None:
        return
    caption, answer = found
    sides = "".join(side_block(side, _clamped(side.text)) for side in entry_of(answer, before=run.before).sides)
    yield f'<section class="first" aria-label="One before and after"><p class="caption">{escaped(caption)}</p>'
    yield f'<p class="text question clamp" dir="auto">{escaped(answer.prompt[:_CLAMPED])}</p>'
    yield f'<div class="sides">{sides}</div></section>'


def _clamped(words: str) -> str:
    """The beginning of an answer; the style sheet shows a few lines of it."""
    return f'<p class="text clamp" dir="auto">{escaped(words[:_CLAMPED] if words.strip() else "(empty)")}</p>'


def _comparison(runs: Sequence[Run]) -> str:
    """One row per run, the best by the held-out measure first, with a column for every setting that differs."""
    found = differing_settings(runs)[:_SETTINGS]
    measure, ranked = ranking(runs)
    header = ["run", *(row.name for row in found), "verdict", "win rate", "95% interval"]
    header += ["held-out margin", "accuracy", "held-out loss", "alarms"]
    rows = []
    for run in ranked:
        rate, verdict = win_rate(run), text(run.summary.get("verdict"))
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
    words = f'<p class="ranked">The best {escaped(measure)} first.</p>' if measure else ""
    return f'<section class="panel compared" aria-label="Runs compared">{words}{table(header, rows)}</section>'


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _beside_verdict(runs: Sequence[Run]) -> Iterator[str]:
    """What must be known besides the verdict, what to do next, and what could not be read."""
    cards = []
    several = len(runs) > 1
    most = 2 if several else _SHOWN_CAUTIONS
    known = [f"{run.name}: {line}" if several else line for run in runs for line in cautions(run)[:most]]
    known = [*filter(None, [judged_unlike(runs)]), *known]
    if known:
        cards.append(panel("Know this as well", "", listed(known)))
    steps = [f"{run.name}: {line}" if several else line for run in runs for line in next_steps(run)]
    if steps:
        cards.append(panel("Next", "", listed(steps, ordered=True)))
    if cards:
        yield '<h2 class="unseen">What to know and what to do</h2>'
        yield panels(*cards) if len(cards) > 1 else panels(cards[0].replace('"panel"', '"panel full"', 1))
    unread = list(missing_files(runs))
    if unread:
        yield f'<div class="unread" role="note"><b>Not everything could be read.</b>{listed(unread)}</div>'
    if all(number(run.summary.get("win_rate")) is None for run in runs) and any(run.summary for run in runs):
        yield '<p class="unread" role="note">The evaluation holds no win rate that this version can read.</p>'
