"""audit.json -> audit.html: what is wrong with the data, in five seconds; then why, with plots and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preftune.report.audit import charts
from preftune.report.html.components import panel, panels, with_commands
from preftune.report.html.document import Page, escaped, table, text_block

Figures = Mapping[str, Any]

_QUOTED_BYTES = 1_200_000
"""Bytes of example texts on a page, which stays under 3 MB with the 0.9 MB of its charts."""


def audit_page(audit: Figures) -> str:
    """The page of an audit.

    Args:
        audit: what audit.json holds.
    """
    page = Page(f"Audit of {audit['data']}")
    page.add("<header>", *_header(audit), "</header>", "<main>", *findings(audit))
    page.add(*pictures(page, audit["figures"]), "</main>", _footer(audit))
    return page.render()


def _header(audit: Figures) -> Iterator[str]:
    figures = audit["figures"]
    yield f'<p class="brand"><strong>preftune audit</strong> &nbsp;{escaped(audit["data"])}</p>'
    yield f"<h1>{_verdict(audit)}</h1>"
    worst = [finding for finding in audit["findings"] if finding["severity"] != "info"][:3]
    if worst:
        named = "; ".join(
            f"{finding['title'][:1].lower()}{finding['title'][1:]} ({_count(finding)})" for finding in worst
        )
        yield f'<p class="lead">First of all: {escaped(named)}.</p>'
    prompts = figures.get("duplicates", {}).get("prompts")
    facts = [("rows", f"{audit['rows']:,}"), ("usable pairs", f"{figures['size']['usable']:,}")]
    if prompts:
        facts.append(("different prompts", f"{prompts:,}"))
    lengths = figures.get("lengths", {})
    if lengths.get("pairs"):
        middle = lengths["percentiles"]
        facts.append((f"{lengths['unit']} in the median answer", f"{middle['chosen']['p50']:,.0f}"))
    if figures["rows"].get("format"):
        facts.append(("format", figures["rows"]["format"]))
    items = "".join(f"<li><b>{escaped(value)}</b>{escaped(name)}</li>" for name, value in facts)
    yield f'<ul class="facts">{items}</ul>'


def _verdict(audit: Figures) -> str:
    """The headline, in markup."""
    counts = dict.fromkeys(("error", "warning", "info"), 0)
    for finding in audit["findings"]:
        counts[finding["severity"]] += 1
    parts = [
        f'<span class="n-{severity}">{counts[severity]} {severity}{"s" * (counts[severity] != 1)}</span>'
        for severity in ("error", "warning")
        if counts[severity]
    ]
    where = f"in {audit['pairs']:,} pairs" if audit["pairs"] else f"in {audit['rows']:,} rows"
    if parts:
        return f"{' and '.join(parts)} {where}"
    return f'<span class="n-good">Nothing wrong</span> {where}'


def findings(audit: Figures) -> Iterator[str]:
    """What was found, the worst first, each with its rows behind it."""
    yield "<h2>Findings</h2>"
    if not audit["findings"]:
        yield '<p class="clean">No check found anything.</p>'
        return
    limit = _quoted_characters(audit["examples"])
    yield '<ul class="findings">'
    for number, finding in enumerate(audit["findings"]):
        open_ = " open" if number == 0 and finding["severity"] == "error" else ""
        yield f'<li class="finding {escaped(finding["severity"])}" id="{escaped(finding["name"])}"><details{open_}>'
        yield _summary(finding)
        yield '<div class="inside"><dl>'
        yield f"<dt>What it does</dt><dd>{escaped(finding['effect'])}</dd>"
        yield f"<dt>Fix</dt><dd>{with_commands(finding['cure'])}</dd>"
        yield f"<dt>Name</dt><dd><code>{escaped(finding['name'])}</code></dd></dl>"
        for example in audit["examples"].get(finding["name"], ()):
            yield _example(example, limit)
        yield "</div></details></li>"
    yield "</ul>"


def _summary(finding: Figures) -> str:
    detail = f"<small>{escaped((finding['detail'] or finding['effect'])[:400])}</small>"
    share = finding["share"]
    return (
        f'<summary><span class="pill">{escaped(finding["severity"])}</span>'
        f'<span class="what">{escaped(finding["title"])}{detail}</span>'
        f'<span class="count">{finding["count"]:,} <small>{_percent(share)}</small>'
        f'<span class="bar"><i style="width:{max(1.0, 100 * share):.1f}%"></i></span></span></summary>'
    )


def _example(example: Figures, limit: int) -> str:
    note = f" <span>{escaped(example['note'][:300])}</span>" if example["note"] else ""
    head = f"<h4>Row {example['row']:,}{note}</h4>"
    if "raw" in example:
        raw = _part("raw", "as it stands in the data", example["raw"], limit) if example["raw"]["text"] else ""
        return f'<div class="example">{head}{raw}</div>'
    prompt = _part("prompt", "prompt", example["prompt"], limit)
    sides = "".join(_part(side, side, example[side], limit) for side in ("chosen", "rejected"))
    return f'<div class="example">{head}{prompt}<div class="sides">{sides}</div></div>'


def _part(kind: str, name: str, text: Figures, limit: int) -> str:
    block = text_block(text["text"][:limit], characters=text["characters"])
    return f'<div class="part {kind}"><b>{name}</b>{block}</div>'


def _quoted_characters(examples: Mapping[str, Sequence[Figures]]) -> int:
    """Characters of each example text, such that all together keep within their bytes."""
    texts = [
        escaped(text["text"])
        for rows in examples.values()
        for row in rows
        for text in (row.get(part) for part in ("prompt", "chosen", "rejected", "raw"))
        if text
    ]
    limit = 2000
    while limit > 100 and sum(len(text[:limit].encode()) for text in texts) > _QUOTED_BYTES:
        limit //= 2
    return limit


def pictures(page: Page, figures: Figures) -> Iterator[str]:
    """Plots and tables of what was counted, whether anything is wrong with it or not."""
    if figures.get("lengths", {}).get("pairs"):
        yield from _lengths(page, figures["lengths"])
    if figures.get("cheats"):
        yield "<h2>Shortcuts</h2>"
        words = (
            "How often one feature alone distinguishes the sides. At 50% the feature says nothing; a coloured "
            "one is a finding. Intervals count prompts, not pairs."
        )
        yield panels(
            panel(
                "What each rule gets right",
                words,
                _chart(page, "shortcuts", charts.shortcuts(figures["cheats"])),
                full=True,
            )
        )
    labels = figures.get("labels", {})
    cards = []
    if labels.get("agreement"):
        words = f"Mean {labels['agreement']['mean']:.0%}."
        chart = charts.spread(labels["agreement"]["histogram"], "share of annotators who agree")
        cards.append(panel("Agreement of the annotators", words, _chart(page, "agreement", chart)))
    if labels.get("strength"):
        words = "In the units of the data: points, ranks, or the logarithm of a ratio of votes."
        chart = charts.spread(labels["strength"]["histogram"], "chosen rating minus rejected rating", at=0)
        cards.append(panel("Strength of the preferences", words, _chart(page, "strength", chart)))
    if cards:
        yield "<h2>Labels</h2>"
        yield panels(*cards)
    if figures.get("sources"):
        yield "<h2>Sources</h2>"
        yield panels(*_sources(page, figures["sources"]))
    if figures.get("diversity", {}).get("sentences"):
        yield "<h2>Diversity of the prompts</h2>"
        yield from _diversity(figures["diversity"])
    if figures.get("reference", {}).get("pairs"):
        yield from _reference(page, figures["reference"])


def _lengths(page: Page, figures: Figures) -> Iterator[str]:
    unit = figures["unit"]
    yield "<h2>Length</h2>"
    if unit == "words":
        words = "Counted in words. Name the model's tokenizer with <code>--tokenizer</code> to count tokens."
    else:
        words = f"Counted in tokens of {escaped(figures['tokenizer'])}."
    cut = figures.get("cut")
    limit = f"{cut['cut']:,} rows are cut, {cut['left_out']:,} left out." if cut and figures["max_length"] else ""
    header = ["", "mean", "5%", "25%", "median", "75%", "95%", "99%", "longest"]
    names = ("mean", "p5", "p25", "p50", "p75", "p95", "p99", "max")
    rows = [
        ["prompt + longer answer" if part == "pair" else part, *(f"{values[name]:,.0f}" for name in names)]
        for part, values in figures["percentiles"].items()
    ]
    yield f'<p class="lead">{words}</p><br>'
    yield panels(
        panel(
            "Chosen and rejected",
            "How long the answers of each side are.",
            _chart(page, "lengths", charts.lengths(figures)),
        ),
        panel(
            "Difference",
            "To the right of the line the chosen answer is the longer one.",
            _chart(page, "difference", charts.difference(figures)),
        ),
        panel("Whole pairs", limit, _chart(page, "limit", charts.against_limit(figures))),
        panel("Prompts", "How long the prompts are.", _chart(page, "prompts", charts.prompts(figures))),
        panel("Percentiles", "", table(header, rows), full=True),
    )


def _sources(page: Page, figures: Figures) -> Iterator[str]:
    for number, (column, counts) in enumerate(figures.items()):
        if counts["different"] == 1:
            (value,) = counts["counts"]
            yield panel(column, f"{value}, in all pairs.", "")
            continue
        chart = charts.counted(counts["counts"], counts["others"])
        yield panel(column, f"{counts['different']:,} different.", _chart(page, f"source-{number}", chart))


def _diversity(figures: Figures) -> Iterator[str]:
    yield f'<p class="lead">{escaped(" ".join(figures["sentences"]))}</p><br>'
    if figures.get("of_groups"):
        rows = [[", ".join(group["words"]) or "(none)", f"{group['share']:.1%}"] for group in figures["of_groups"]]
        yield panels(panel("Largest groups", "The words that set them apart.", table(["", "share"], rows)))


def _reference(page: Page, figures: Figures) -> Iterator[str]:
    yield "<h2>The model before training</h2>"
    whole, each = figures["margin"], figures["margin_per_token"]
    words = (
        f"{figures['model']} finds the chosen answer likelier in {whole['accuracy']:.1%} of {figures['pairs']:,} pairs "
        f"(95% interval {whole['low']:.1%} to {whole['high']:.1%}); token for token in {each['accuracy']:.1%} "
        f"({each['low']:.1%} to {each['high']:.1%})."
    )
    yield f'<p class="lead">{escaped(words)}</p><br>'
    rows = [
        [f"row {row['row']:,}", f"{row['margin']:+.1f}", f"{row['margin_per_token']:+.2f}"]
        for row in figures["most_surprising"]
    ]
    yield panels(
        panel(
            "Margin of whole answers",
            f"Mean {whole['mean']:+.2f} nats.",
            _chart(page, "margin", charts.spread(whole["histogram"], "nats that chosen is likelier", at=0)),
        ),
        panel(
            "Margin per token",
            f"Mean {each['mean']:+.3f} nats.",
            _chart(page, "margin-token", charts.spread(each["histogram"], "nats a token", at=0)),
        ),
        panel(
            "Most surprising labels",
            "Read these first: swapped sides look like this.",
            table(["", "margin", "per token"], rows),
            full=True,
        ),
    )


def _chart(page: Page, name: str, specification: dict[str, Any]) -> str:
    return page.chart(name, specification, label=f"Chart: {name.replace('-', ' ')}")


def _footer(audit: Figures) -> str:
    held_out = audit["figures"]["size"]["held_out"]
    return (
        f"<footer><p>To see accuracy change by {held_out['change']:.0%} takes {held_out['needed']:,} held-out pairs: "
        f"{escaped(held_out['formula'])}, with q = {held_out['disagreement']:g} assumed.</p>"
        f"<p>preftune {escaped(audit['preftune'])}, {escaped(audit['created'])}, {audit['seconds']:.1f} s.</p></footer>"
    )


def _count(finding: Figures) -> str:
    return f"{finding['count']:,}, {_percent(finding['share'])}"


def _percent(share: float) -> str:
    if share >= 0.9995:
        return "all"
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
