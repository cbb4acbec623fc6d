"""How training went: the curves, with the guard's alarms on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from preftune.report.html.components import NOTHING, panel, panels
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.reading.run_files import Run
from preftune.report.run import charts
from preftune.report.run.curves import PANELS, Line, Mark, Panel, lines_of, marks_of
from preftune.report.run.headline import length
from preftune.storage.untrusted_json import Figures, at, number, text

_MARKS = 80
"""Alarms on one curve; the time axis has all."""
_ALARMS = 60
"""On one page."""


def training_section(page: Page, runs: Sequence[Run]) -> Markup:
    """Markup of curves and alarms, empty where nothing was logged."""
    lines, marks = lines_of(runs, share=page.share), marks_of(runs)
    if not lines and not marks:
        return NOTHING
    last = max(length(run) for run in runs)
    names = [run.name for run in runs]
    cards = [_curve(page, one, lines[one.name], marks, names, last) for one in PANELS if one.name in lines]
    return NOTHING.join([_note(lines), _guard(page, runs, marks, last), panels(*cards) if cards else NOTHING])


def _curve(
    page: Page, one: Panel, lines: Sequence[Line], marks: Sequence[Mark], runs: Sequence[str], last: int
) -> Markup:
    ends = [(line, value) for line in lines if (value := _last(line)) is not None]
    values = ", ".join(f"{_label(line, runs)} {format(value, _python(one.format))}" for line, value in ends)
    chart = charts.curve(one, lines, marks[: round(_MARKS * page.share)], runs=runs, last=last)
    aside = ""
    if len(runs) == 1 and ends and one.name != "learning-rate":
        aside = format(ends[0][1], _python(one.format))
    of = ends[0][0].series if len(ends) > 1 else ""
    label = f"{one.title} over {last:,} steps; at the end: {values}"
    return panel(one.title, one.words, page.chart(f"curve-{one.name}", chart, label=label), aside=aside, of=of)


def _label(line: Line, runs: Sequence[str]) -> str:
    return line.series if len(runs) == 1 else f"{line.run} {line.series}"


def _last(line: Line) -> float | None:
    return next((value for _, value in reversed(line.points) if value is not None), None)


def _python(form: str) -> str:
    """A format of d3 as one of Python's."""
    return {".3~g": ".3g", ".2~e": ".2g", ".1~%": ".1%"}.get(form, form)


def _note(lines: Mapping[str, Sequence[Line]]) -> Markup:
    """That curves are thinned, if they are."""
    if not any(line.thinned for drawn in lines.values() for line in drawn):
        return NOTHING
    return Markup(
        '<p class="lead">Long curves are thinned: of every section the first, lowest and highest point is drawn; '
        "metrics.jsonl has all points.</p>"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _guard(page: Page, runs: Sequence[Run], marks: Sequence[Mark], last: int) -> Markup:
    """The alarms on the axis of steps, and each in words; or that none was raised."""
    checks = sum(int(number(at(run.facts, "guard", "checks")) or 0) for run in runs)
    if not marks:
        if not checks and all(at(run.facts, "guard", "on") is not True for run in runs):
            return NOTHING
        did = f"looked {_times(checks)} while training" if checks else "read the training figures"
        return Markup('<p class="clean">The guard {} and raised no alarm.</p>').format(did)
    names = [run.name for run in runs]
    label = "; ".join(f"{mark.name} at step {mark.step:,}" for mark in marks[:10])
    chart = page.chart("alarms", charts.timeline(marks, runs=names, last=last), label=f"Alarms over steps: {label}")
    alarms = sorted((_alarm(run, alarm, len(runs) > 1) for run in runs for alarm in run.alarms), key=_step)
    words = "The guard's observations during training. The lines in the charts below mark the same steps."
    content = markup("run.alarms", chart, alarms[:_ALARMS], len(alarms) - _ALARMS)
    return panels(panel("The guard", words, content, full=True))


def _step(alarm: Figures) -> int:
    return int(alarm["step"])


def _alarm(run: Run, alarm: Figures, several: bool) -> Figures:
    done = {"stop": "Training was stopped.", "rollback": "Training went back to the best checkpoint."}
    return {
        "level": "note" if alarm.get("level") == "note" else "alarm",
        "name": text(alarm.get("name")).replace("-", " "),
        "step": int(number(alarm.get("step")) or 0),
        "run": run.name if several else "",
        "seen": text(alarm.get("seen")),
        "advice": [
            ("Likely cause", text(alarm.get("cause"))),
            ("Fix", text(alarm.get("remedy"))),
            ("Done", done.get(text(alarm.get("action")), "")),
        ],
    }
