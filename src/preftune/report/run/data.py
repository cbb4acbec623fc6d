"""What a run was trained on, every setting and version, and the command that does it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jinja2 import UndefinedError
from markupsafe import Markup

from preftune.amounts import counted
from preftune.data.tokens.reasons import REASONS, REASONS_OF_METHOD
from preftune.report.audit.page import findings, pictures
from preftune.report.html.components import NOTHING, listed, loose, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.reading.run_files import Run
from preftune.report.run.settings import (
    all_settings,
    command,
    evaluation_settings,
    first_settings,
    install,
    versions,
)
from preftune.storage.untrusted_json import Figures, at, mapping, number, sentences, text


def data_section(page: Page, runs: Sequence[Run], audit: Figures | None) -> Markup:
    """What tokenising counted in each run, and what `preftune audit` found."""
    parts = []
    for run in runs:
        card = _tokenised(run)
        if card:
            title = f"Rows that train {run.name}" if len(runs) > 1 else "Rows"
            parts.append(panel(title, "", card, full=True))
    found = audit if audit is not None else next((run.data for run in runs if "findings" in run.data), None)
    return (panels(*parts) if parts else NOTHING) + (_audit(page, found) if found is not None else NOTHING)


def _tokenised(run: Run) -> Markup:
    reports = {role: mapping(report) for role, report in run.data.items() if number(at(report, "rows_in")) is not None}
    if not reports:
        return NOTHING
    reasons = REASONS_OF_METHOD.get(text(run.facts.get("method")), REASONS)
    longest_of = "longest pair" if reasons is REASONS else "longest row"
    header = ["", "rows", "used", "left out", "cut", "tokens", longest_of]
    rows = []
    for role, report in reports.items():
        rows_in, rows_out = int(number(report.get("rows_in")) or 0), int(number(report.get("rows_out")) or 0)
        cut = sum(int(number(at(tally, "count")) or 0) for tally in mapping(report.get("truncated")).values())
        tokens, longest = number(report.get("total_tokens")), number(report.get("longest"))
        name = "training" if role == "train" else "held out" if role == "eval" else role
        values = [rows_in, rows_out, rows_in - rows_out, cut, int(tokens or 0), int(longest or 0)]
        rows.append([name, *(f"{value:,}" for value in values)])
    lines = list(_sentences(reports, reasons))
    return table(header, rows) + (listed(lines) if lines else NOTHING)


def _sentences(reports: dict[str, Figures], reasons: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """What was left out and cut, with the words of the run's kind of rows."""
    for role, report in reports.items():
        name = "training" if role == "train" else "held out" if role == "eval" else role
        for reason, tally in mapping(report.get("dropped")).items():
            wrong, fix = reasons.get(reason, (str(reason).replace("_", " "), ""))
            count = int(number(at(tally, "count")) or 0)
            yield f"{counted(count, 'row')} left out ({name}): {wrong}. {fix}".strip()
        for part, tally in mapping(report.get("truncated")).items():
            count = int(number(at(tally, "count")) or 0)
            yield f"{part} cut in {counted(count, 'row')} ({name})."
        yield from sentences(report.get("notes"))


def _audit(page: Page, audit: Figures) -> Markup:
    """The findings and plots of an audit; one of another version may lack what they need."""
    before = dict(page.charts)
    heading = Markup('<h3 class="of-run">{}</h3>')
    try:
        return findings(audit, heading) + pictures(page, mapping(audit.get("figures")), heading)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError):
        page.charts = before
        return markup("run.note", "", "The audit was written by another version, or is incomplete.")


def settings_section(runs: Sequence[Run]) -> Markup:
    """Markup of commands, settings and versions."""
    names = [run.name for run in runs]
    several = len(runs) > 1
    commands = [(run.name if several else "", line) for run in runs if (line := command(run))]
    pins = list(dict.fromkeys(filter(None, (install(run) for run in runs))))
    whole: list[Markup] = []
    rest: list[Markup] = []
    for title, rows in (
        ("What decides", first_settings(runs)),
        ("How answers were made", evaluation_settings(runs)),
        ("Versions and machine", versions(runs)),
        ("All settings", all_settings(runs)),
    ):
        if rows:
            is_folded = title == "All settings"
            full = is_folded or several
            (whole if full else rest).append(
                panel(title, "", markup("run.settings", rows, names if several else [], is_folded), full=full)
            )
    if commands:
        whole.insert(0, panel("Repeat it", "", markup("run.commands", commands, pins), full=True))
    first = [panels(whole[0])] if whole else []
    return NOTHING.join([*first, loose(*rest) if rest else NOTHING, panels(*whole[1:])])
