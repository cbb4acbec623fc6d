"""How training went: the curves, with the guard's alarms on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from preftune.report.html.components import panel, panels, with_commands
from preftune.report.html.document import Page, escaped
from preftune.report.reading.run_files import Run
from preftune.report.reading.untrusted_json import Figures, at, number, text
from preftune.report.run import charts
from preftune.report.run.curves import PANELS, Line, Mark, Panel, lines_of, marks_of
from preftune.report.run.headline import length

_MARKS = 80
"""Alarms on one curve; the time axis has all."""
_ALARMS = 60
"""On one page."""


def training_section(page: Page, runs: Sequence[Run]) -> str:
    """Markup of curves and alarms, empty where nothing was logged."""
    lines, marks = lines_of(runs, share=page.share), marks_of(runs)
    if not lines and not marks:
        return ""
    last = max(length(run) for run in runs)
    names = [run.name for run in runs]
    cards = [_curve(page, one, lines[one.name], marks, names, last) for one in PANELS if one.name in lines]
    return "".join([_note(lines), *_guard(page, runs, marks, last), panels(*cards) if cards else ""])


def _curve(page: Page, one: Panel, lines: Sequence[Line], marks: Sequence[Mark], runs: Sequence[str], last: int) -> str:
    ends = [(line, value) for line in lines if (value := _last(line)) is not None]
    told = ", ".join(f"{_label(line, runs)} {format(value, _python(one.format))}" for line, value in ends)
    chart = charts.curve(one, lines, marks[: round(_MARKS * page.share)], runs=runs, last=last)
    aside = ""
    if len(runs) == 1 and ends and one.name != "learning-rate":
        aside = format(ends[0][1], _python(one.format))
    of = ends[0][0].series if len(ends) > 1 else ""
    label = f"{one.title} over {last:,} steps; at the end: {told}"
    return panel(one.title, one.words, page.chart(f"curve-{one.name}", chart, label=label), aside=aside, of=of)


def _label(line: Line, runs: Sequence[str]) -> str:
    return line.series if len(runs) == 1 else f"{line.run} {line.series}"


def _last(line: Line) -> float | None:
    return next((value for _, value in reversed(line.points) if value is not None), None)


def _python(form: str) -> str:
    """A format of d3 as one of Python's."""
    return {".3~g": ".3g", ".2~e": ".2g", ".1~%": ".1%"}.get(form, form)


def _note(lines: Mapping[str, Sequence[Line]]) -> str:
    """That curves are thinned, if they are."""
    if not any(line.thinned for drawn in lines.values() for line in drawn):
        return ""
    words = (
        "Long curves are thinned: of every stretch its first, lowest and highest point is drawn; metrics.jsonl has all."
    )
    return f'<p class="lead">{words}</p>'


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _guard(page: Page, runs: Sequence[Run], marks: Sequence[Mark], last: int) -> Iterator[str]:
    """The alarms on the axis of steps, and each in words; or that none was raised."""
    checks = sum(int(number(at(run.facts, "guard", "checks")) or 0) for run in runs)
    if not marks:
        if checks:
            yield f'<p class="clean">The guard looked {_times(checks)} while training and raised no alarm.</p>'
        elif any(at(run.facts, "guard", "on") is True for run in runs):
            yield '<p class="clean">The guard read the training figures and raised no alarm.</p>'
        return
    names = [run.name for run in runs]
    told = "; ".join(f"{mark.name} at step {mark.step:,}" for mark in marks[:10])
    chart = page.chart("alarms", charts.timeline(marks, runs=names, last=last), label=f"Alarms over steps: {told}")
    alarms = sorted(
        ((number(alarm.get("step")) or 0, run, alarm) for run in runs for alarm in run.alarms), key=lambda one: one[0]
    )
    items = "".join(_alarm(run if len(runs) > 1 else None, alarm) for _, run, alarm in alarms[:_ALARMS])
    more = f"<p>{len(alarms) - _ALARMS:,} more are in guard.jsonl.</p>" if len(alarms) > _ALARMS else ""
    words = "What the guard saw while training. The lines in the charts below mark the same steps."
    yield panels(panel("The guard", words, f'{chart}<ul class="alarms">{items}</ul>{more}', full=True))


def _alarm(run: Run | None, alarm: Figures) -> str:
    level = "note" if alarm.get("level") == "note" else "alarm"
    name = text(alarm.get("name")).replace("-", " ")
    where = f"step {int(number(alarm.get('step')) or 0):,}"
    of = f" · <bdi>{escaped(run.name)}</bdi>" if run is not None else ""
    done = {"stop": "Training was stopped.", "rollback": "Training went back to the best checkpoint."}
    lines = [
        f"<dt>{label}</dt><dd>{with_commands(words)}</dd>"
        for label, words in (
            ("Likely cause", text(alarm.get("cause"))),
            ("Fix", text(alarm.get("remedy"))),
            ("Done", done.get(text(alarm.get("action")), "")),
        )
        if words
    ]
    return (
        f'<li class="alarm {level}"><p><span class="pill">{level}</span> <b>{escaped(name)}</b> '
        f'<span class="where">{where}{of}</span></p><p class="seen">{escaped(text(alarm.get("seen")))}</p>'
        f"<dl>{''.join(lines)}</dl></li>"
    )
