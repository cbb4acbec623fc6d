"""audit.json -> audit.html: what is wrong with the data, in five seconds; then why, with plots and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from preftune.amounts import counted
from preftune.report.audit import charts
from preftune.report.html.components import NOTHING, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.html.templates import few_percent, markup, with_commands

Figures = Mapping[str, Any]

_HEADING = Markup("<h2>{}</h2>")
_QUOTED_BYTES = 1_200_000
"""Bytes of example texts on a page, which stays under 3 MB with the 0.9 MB of its charts."""


def audit_page(audit: Figures) -> str:
    """The page of an audit.

    Args:
        audit: what audit.json holds.
    """
    page = Page(f"Audit of {audit['data']}")
    header = markup("audit.header", audit, *_header(audit))
    body = findings(audit) + pictures(page, audit["figures"])
    whole = Markup("<header>{}</header>\n<main>{}</main>\n{}")
    return page.render(whole.format(header, body, markup("audit.footer", audit)))


def _header(audit: Figures) -> tuple[list[tuple[str, int]], list[str], list[tuple[str, str]]]:
    """How many findings of each severity, the worst ones in words, and the facts with their names."""
    figures, found = audit["figures"], audit["findings"]
    counts = [(kind, sum(one["severity"] == kind for one in found)) for kind in ("error", "warning")]
    worst = [
        f"{one['title'][:1].lower()}{one['title'][1:]} ({one['count']:,}, {few_percent(one['share'])})"
        for one in found
        if one["severity"] != "info"
    ]
    facts = [("rows", f"{audit['rows']:,}"), ("usable pairs", f"{figures['size']['usable']:,}")]
    prompts = figures.get("duplicates", {}).get("prompts")
    if prompts:
        facts.append(("different prompts", f"{prompts:,}"))
    lengths = figures.get("lengths", {})
    if lengths.get("pairs"):
        median = lengths["percentiles"]["chosen"]["p50"]
        facts.append((f"{lengths['unit']} in the median answer", f"{median:,.0f}"))
    if figures["rows"].get("format"):
        facts.append(("format", figures["rows"]["format"]))
    return [pair for pair in counts if pair[1]], worst[:3], facts


def findings(audit: Figures, heading: Markup = _HEADING) -> Markup:
    """What was found, the worst first, each with its rows behind it.

    Args:
        heading: markup with a place for the words.
    """
    limit = _quoted_characters(audit["examples"])
    return heading.format("Findings") + markup("audit.findings", audit["findings"], audit["examples"], limit)


def _quoted_characters(examples: Mapping[str, Sequence[Figures]]) -> int:
    """Characters of each example text, such that all together keep within their bytes."""
    texts = [
        escape(text["text"])
        for rows in examples.values()
        for row in rows
        for text in (row.get(part) for part in ("prompt", "chosen", "rejected", "raw"))
        if text
    ]
    limit = 2000
    while limit > 100 and sum(len(text[:limit].encode()) for text in texts) > _QUOTED_BYTES:
        limit //= 2
    return limit


def pictures(page: Page, figures: Figures, heading: Markup = _HEADING) -> Markup:
    """Plots and tables of what was counted, whether anything is wrong with it or not."""
    sections = (
        ("Length", _lengths(page, figures["lengths"]) if figures.get("lengths", {}).get("pairs") else ()),
        ("Shortcuts", _shortcuts(page, figures["cheats"]) if figures.get("cheats") else ()),
        ("Labels", _in_panels(_labels(page, figures.get("labels", {})))),
        ("Sources", _in_panels(_sources(page, figures.get("sources") or {}))),
        ("Diversity of the prompts", _diversity(figures.get("diversity", {}))),
        (
            "The model before training",
            _reference(page, figures["reference"]) if figures.get("reference", {}).get("pairs") else (),
        ),
    )
    filled = ((name, NOTHING.join(parts)) for name, parts in sections)
    return NOTHING.join(heading.format(name) + content for name, content in filled if content)


def _in_panels(cards: Iterator[Markup]) -> Sequence[Markup]:
    found = list(cards)
    return [panels(*found)] if found else []


def _shortcuts(page: Page, figures: Figures) -> Iterator[Markup]:
    words = (
        "How often one feature alone distinguishes the sides. At 50% the feature says nothing; a coloured "
        "one is a finding. Intervals count prompts, not pairs."
    )
    chart = _chart(page, "shortcuts", charts.shortcuts(figures))
    yield panels(panel("Accuracy of each rule", words, chart, full=True))


def _labels(page: Page, figures: Figures) -> Iterator[Markup]:
    if figures.get("agreement"):
        words = f"Mean {figures['agreement']['mean']:.0%}."
        chart = charts.spread(figures["agreement"]["histogram"], "share of annotators who agree")
        yield panel("Agreement of the annotators", words, _chart(page, "agreement", chart))
    if figures.get("strength"):
        words = "In the units of the data: points, ranks, or the logarithm of a ratio of votes."
        chart = charts.spread(figures["strength"]["histogram"], "chosen rating minus rejected rating", at=0)
        yield panel("Strength of the preferences", words, _chart(page, "strength", chart))


def _lengths(page: Page, figures: Figures) -> Iterator[Markup]:
    unit = figures["unit"]
    if unit == "words":
        words = "Counted in words. Name the model's tokenizer with --tokenizer to count tokens."
    else:
        words = f"Counted in tokens of {figures['tokenizer']}."
    cut = figures.get("cut")
    limit = f"{counted(cut['cut'], 'row')} cut, {cut['left_out']:,} left out." if cut and figures["max_length"] else ""
    header = ["", "mean", "5%", "25%", "median", "75%", "95%", "99%", "longest"]
    names = ("mean", "p5", "p25", "p50", "p75", "p95", "p99", "max")
    rows = [
        ["prompt + longer answer" if part == "pair" else part, *(f"{values[name]:,.0f}" for name in names)]
        for part, values in figures["percentiles"].items()
    ]
    yield _lead(words)
    yield panels(
        panel(
            "Chosen and rejected",
            "The lengths of the answers on each side.",
            _chart(page, "lengths", charts.lengths(figures)),
        ),
        panel(
            "Difference",
            "To the right of the line the chosen answer is the longer one.",
            _chart(page, "difference", charts.difference(figures)),
        ),
        panel("Whole pairs", limit, _chart(page, "limit", charts.against_limit(figures))),
        panel("Prompts", "The lengths of the prompts.", _chart(page, "prompts", charts.prompts(figures))),
        panel("Percentiles", "", table(header, rows), full=True),
    )


def _sources(page: Page, figures: Figures) -> Iterator[Markup]:
    for number, (column, counts) in enumerate(figures.items()):
        if counts["different"] == 1:
            (value,) = counts["counts"]
            yield panel(column, f"{value}, in all pairs.", NOTHING)
            continue
        chart = charts.counted(counts["counts"], counts["others"])
        yield panel(column, f"{counts['different']:,} different.", _chart(page, f"source-{number}", chart))


def _diversity(figures: Figures) -> Iterator[Markup]:
    if not figures.get("sentences"):
        return
    yield _lead(" ".join(figures["sentences"]))
    if figures.get("of_groups"):
        rows = [[", ".join(group["words"]) or "(none)", f"{group['share']:.1%}"] for group in figures["of_groups"]]
        yield panels(panel("Largest groups", "The words that distinguish them.", table(["", "share"], rows)))


def _reference(page: Page, figures: Figures) -> Iterator[Markup]:
    whole, each = figures["margin"], figures["margin_per_token"]
    yield _lead(
        f"{figures['model']} finds the chosen answer likelier in {whole['accuracy']:.1%} of "
        f"{counted(figures['pairs'], 'pair')} (95% interval {whole['low']:.1%} to {whole['high']:.1%}); token for "
        f"token in {each['accuracy']:.1%} ({each['low']:.1%} to {each['high']:.1%})."
    )
    margins = (
        (
            "Margin of whole answers",
            f"Mean {whole['mean']:+.2f} nats.",
            "margin",
            whole,
            "nats by which chosen is likelier",
        ),
        ("Margin per token", f"Mean {each['mean']:+.3f} nats.", "margin-token", each, "nats per token"),
    )
    cards = [
        panel(title, words, _chart(page, name, charts.spread(margin["histogram"], axis, at=0)))
        for title, words, name, margin, axis in margins
    ]
    rows = [
        [f"row {row['row']:,}", f"{row['margin']:+.1f}", f"{row['margin_per_token']:+.2f}"]
        for row in figures["most_surprising"]
    ]
    words = "Read these first: swapped sides look like this."
    cards.append(panel("Most surprising labels", words, table(["", "margin", "per token"], rows), full=True))
    yield panels(*cards)


def _lead(words: str) -> Markup:
    return Markup('<p class="lead">{}</p><br>').format(with_commands(words))


def _chart(page: Page, name: str, specification: dict[str, Any]) -> Markup:
    return page.chart(name, specification, label=f"Chart: {name.replace('-', ' ')}")
