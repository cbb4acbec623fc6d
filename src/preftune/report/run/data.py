"""What a run was trained on, every setting and version, and the command that does it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from preftune.data.tokens.reasons import REASONS
from preftune.report.audit.page import findings, pictures
from preftune.report.html.components import listed, loose, panel, panels
from preftune.report.html.document import Page, escaped, table
from preftune.report.reading.run_files import Run
from preftune.report.reading.untrusted_json import Figures, at, mapping, number, sentences
from preftune.report.run.settings import (
    Row,
    all_settings,
    command,
    evaluation_settings,
    first_settings,
    install,
    versions,
)


def data_section(page: Page, runs: Sequence[Run], audit: Figures | None) -> str:
    """What tokenising counted in each run, and what `preftune audit` found."""
    parts = []
    for run in runs:
        card = _tokenised(run)
        if card:
            title = f"Rows that train {run.name}" if len(runs) > 1 else "Rows"
            parts.append(panel(title, "", card, full=True))
    found = audit if audit is not None else next((run.data for run in runs if "findings" in run.data), None)
    return (panels(*parts) if parts else "") + "".join(_audit(page, found) if found is not None else ())


def _tokenised(run: Run) -> str:
    reports = {role: mapping(report) for role, report in run.data.items() if number(at(report, "rows_in")) is not None}
    if not reports:
        return ""
    header = ["", "rows", "used", "left out", "cut", "tokens", "longest pair"]
    rows = []
    for role, report in reports.items():
        rows_in, rows_out = int(number(report.get("rows_in")) or 0), int(number(report.get("rows_out")) or 0)
        cut = sum(int(number(at(tally, "count")) or 0) for tally in mapping(report.get("truncated")).values())
        tokens, longest = number(report.get("total_tokens")), number(report.get("longest"))
        name = "training" if role == "train" else "held out" if role == "eval" else role
        values = [rows_in, rows_out, rows_in - rows_out, cut, int(tokens or 0), int(longest or 0)]
        rows.append([name, *(f"{value:,}" for value in values)])
    lines = list(_reasons(reports))
    return table(header, rows) + (listed(lines) if lines else "")


def _reasons(reports: dict[str, Figures]) -> Iterator[str]:
    for role, report in reports.items():
        name = "training" if role == "train" else "held out" if role == "eval" else role
        for reason, tally in mapping(report.get("dropped")).items():
            wrong, fix = REASONS.get(reason, (str(reason).replace("_", " "), ""))
            count = int(number(at(tally, "count")) or 0)
            yield f"{count:,} {'row' if count == 1 else 'rows'} left out ({name}): {wrong}. {fix}".strip()
        for part, tally in mapping(report.get("truncated")).items():
            count = int(number(at(tally, "count")) or 0)
            yield f"{part} cut in {count:,} {'row' if count == 1 else 'rows'} ({name})."
        yield from sentences(report.get("notes"))


def _audit(page: Page, audit: Figures) -> Iterator[str]:
    """The findings and plots of an audit; one of another version may lack what they need."""
    before = dict(page.charts)
    try:
        markup = [*findings(audit), *pictures(page, mapping(audit.get("figures")))]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        page.charts = before
        yield '<p class="unread" role="note">The audit was written by another version, or is not whole.</p>'
        return
    yield from (line.replace("<h2>", '<h3 class="of-run">').replace("</h2>", "</h3>") for line in markup)


def settings_section(runs: Sequence[Run]) -> str:
    """Markup of commands, settings and versions."""
    cards = []
    commands = [(run, command(run)) for run in runs]
    known = [(run, line) for run, line in commands if line]
    if known:
        blocks = "".join(
            (f"<p><bdi>{escaped(run.name)}</bdi></p>" if len(runs) > 1 else "") + _code(line) for run, line in known
        )
        pins = dict.fromkeys(filter(None, (install(run) for run in runs)))
        blocks += "".join(f"<p>With the same packages:</p>{_code(line)}" for line in pins)
        cards.append(panel("Do it again", "", blocks, full=True))
    names = [run.name for run in runs]
    for title, rows, is_folded in (
        ("What decides", first_settings(runs), False),
        ("How answers were made", evaluation_settings(runs), False),
        ("Versions and machine", versions(runs), False),
        ("All settings", all_settings(runs), True),
    ):
        if rows:
            listing = _rows(rows, names)
            if is_folded:
                listing = f"<details><summary>{len(rows):,} settings</summary>{listing}</details>"
            cards.append(panel(title, "", listing, full=is_folded or len(runs) > 1))
    whole = [card for card in cards if card.startswith('<section class="panel full"')]
    rest = [card for card in cards if card not in whole]
    return "".join([*([panels(whole[0])] if whole else []), loose(*rest) if rest else "", panels(*whole[1:])])


def _code(line: str) -> str:
    return f'<pre tabindex="0"><code>{escaped(line)}</code></pre>'


def _rows(rows: Sequence[Row], names: Sequence[str]) -> str:
    head = ""
    if len(names) > 1:
        cells = "".join(f'<th scope="col"><bdi>{escaped(name)}</bdi></th>' for name in ("", *names))
        head = f"<thead><tr>{cells}</tr></thead>"
    body = "".join(
        f'<tr{" class=differs" * row.differs}><th scope="row">{escaped(row.name)}</th>'
        + "".join(f"<td>{escaped(value)}</td>" for value in row.values)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide" tabindex="0"><table class="settings">{head}<tbody>{body}</tbody></table></div>'
