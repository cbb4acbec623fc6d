"""What an evaluation found besides its verdict: categories, equal length, both models, the judge, suites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from preftune.amounts import counted
from preftune.report.html.components import NOTHING, listed, loose, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.reading.run_files import Run
from preftune.report.run import charts
from preftune.report.run.headline import Rate, day, rate_in, rules, win_rate
from preftune.storage.untrusted_json import Figures, at, items, mapping, number, sentences, text

_CATEGORIES = 24
_EVALUATIONS = 8
_NAMES = {
    "repeats": "repetitive answers",
    "unfinished": "answers cut off at the limit",
    "empty": "empty answers",
    "language_switch": "answers in another language",
    "refusals": "refusals",
    "distinct_2": "distinct word pairs",
    "self_similarity": "similarity between answers",
    "repeated": "words inside repeated phrases",
    "words": "words per answer",
    "tokens": "tokens per answer",
}
_COUNTED = ("words", "tokens")
"""Figures that are no shares."""


def evaluation_section(page: Page, runs: Sequence[Run]) -> Markup:
    """Markup of all evaluations, empty without one."""
    parts = []
    for number_, run in enumerate(runs):
        cards = list(_cards(page, run, f"-{number_}"))
        if (cards or run.suites) and len(runs) > 1:
            parts.append(Markup('<h3 class="of-run"><bdi>{}</bdi></h3>').format(run.name))
        if cards:
            parts.append(loose(*cards))
        if len(run.history) > 1:
            words = "The latest first. Win rates on other prompts or by other judges are not comparable."
            parts.append(panels(panel("Its evaluations", words, _history(run), full=True)))
        if run.suites:
            parts.append(panels(panel("Suites", "", _suites(run), full=True)))
    return NOTHING.join(parts)


def _cards(page: Page, run: Run, suffix: str) -> Iterator[Markup]:
    summary = run.summary
    decided = rules(run)
    if decided:
        words = 'The verdict is "better" only if no rule fails.'
        yield panel("The rules of the verdict", words, listed(decided))
    if evaluated := list(_evaluated(summary)):
        yield panel("What was evaluated", "The same weights and template have the same digests.", listed(evaluated))
    categories = _rates(mapping(summary.get("categories")))
    if len(categories) > 1:
        listing = "; ".join(f"{name} {rate.rate:.0%}" for name, rate in categories.items())
        chart = page.chart(f"categories{suffix}", charts.rates(categories), label=f"Win rate by category: {listing}")
        words = "Win rate of each kind of prompt, with its interval: wide intervals mean little. Lines at 50% and 55%."
        yield panel("By category", words, chart)
    figures = list(_figures(summary))
    if figures:
        beside = "before and after" if run.before == "before" else f"by the model, and by {run.before}"
        words = f"The same prompts, answered {beside}. Marked: worse by more than chance."
        yield panel("Both models", words, _figures_table(figures, run.before))
    equal = rate_in(mapping(summary.get("length_controlled")))
    plain = win_rate(run)
    if equal is not None and plain is not None:
        rates = {"win rate": plain, "at equal length": equal}
        label = f"Win rate {plain.rate:.1%}, at equal length {equal.rate:.1%}"
        words = "What the win rate would be if both models' answers were equally long: judges often favour length."
        chart = page.chart(f"equal-length{suffix}", charts.rates(rates), label=label)
        yield panel("Length", words, chart, aside=f"{equal.rate:.1%}")
    judge = list(_judge(summary))
    if judge:
        yield panel("The judge", "", listed(judge))
    degenerate = sentences(at(summary, "degeneration", "sentences"))
    if degenerate:
        yield panel("Degeneration", "", listed(degenerate[:8]) + _worst(mapping(summary.get("degeneration"))))


def _rates(figures: Figures) -> dict[str, Rate]:
    """Name -> rate, the lowest first: what got worse is read first."""
    found = {str(name): rate for name, values in figures.items() if (rate := rate_in(mapping(values))) is not None}
    return dict(sorted(found.items(), key=lambda pair: pair[1].rate)[:_CATEGORIES])


def _figures(summary: Figures) -> Iterator[tuple[str, str, str, str, bool]]:
    """Name, before, after, difference, and whether it got worse."""
    facts = mapping(summary.get("key_fact_rate"))
    before, after = number(at(facts, "base", "rate")), number(at(facts, "aligned", "rate"))
    if before is not None and after is not None:
        low, high = number(at(facts, "difference", "ci_low")), number(at(facts, "difference", "ci_high"))
        yield "answers with the key fact", f"{before:.1%}", f"{after:.1%}", _points(low, high), (high or 0) < 0
    if "tokens" not in mapping(at(summary, "degeneration", "figures")):
        base, aligned = (number(at(summary, "mean_tokens", side)) for side in ("base", "aligned"))
        if base is not None and aligned is not None:
            yield "tokens per answer", f"{base:.0f}", f"{aligned:.0f}", "", False
    if "unfinished" not in mapping(at(summary, "degeneration", "figures")):
        base, aligned = (number(at(summary, "finished", side)) for side in ("base", "aligned"))
        if base is not None and aligned is not None:
            yield "answers ended by the model", f"{base:.1%}", f"{aligned:.1%}", "", False
    worse = items(at(summary, "degeneration", "worse"))
    for name, values in mapping(at(summary, "degeneration", "figures")).items():
        base, aligned = number(at(values, "base")), number(at(values, "aligned"))
        if base is None or aligned is None or (base == aligned == 0):
            continue
        low, high = number(at(values, "ci_low")), number(at(values, "ci_high"))
        form, points = (".0f", _plain(low, high)) if name in _COUNTED else (".1%", _points(low, high))
        yield (
            _NAMES.get(name, name.replace("_", " ")),
            format(base, form),
            format(aligned, form),
            points,
            name in worse,
        )


def _points(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    digits = 1 if max(abs(low), abs(high)) < 0.02 else 0
    return f"{100 * low:+.{digits}f} to {100 * high:+.{digits}f} points"


def _plain(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.0f} to {high:+.0f}"


def _figures_table(figures: Sequence[tuple[str, str, str, str, bool]], before_: str) -> Markup:
    rows = [(f"{name}{' (worse)' * worse}", before, after, span) for name, before, after, span, worse in figures]
    worse = [place for place, figure in enumerate(figures) if figure[-1]]
    return table(("", before_, "after", "difference"), rows, worse=worse)


def _evaluated(summary: Figures) -> Iterator[str]:
    """A sentence per side: what answered, by digests of its files and of its chat template."""
    for side, called in (("aligned", "Aligned model"), ("base", "Baseline")):
        found = mapping(mapping(summary.get("evaluated")).get(side))
        if not found:
            continue
        parts = [f"{called}: {text(found.get('name'))}"]
        parts += [f"{name} {text(found.get(name))[:32]}" for name in ("weights", "template") if found.get(name)]
        yield ", ".join(parts) + "."


def _judge(summary: Figures) -> Iterator[str]:
    name = text(summary.get("judge"))
    if name:
        yield f"Judged by {name}."
    asked, disagreed = number(at(summary, "position_bias", "asked")), number(at(summary, "position_bias", "disagreed"))
    if asked and disagreed is not None:
        first = number(at(summary, "position_bias", "first_preferred")) or 0
        side = f" {counted(int(first), 'time')} for the first answer" if disagreed else ""
        yield (
            f"Asked in both orders it contradicted itself on {int(disagreed):,} of {counted(int(asked), 'pair')} "
            f"({disagreed / asked:.0%}){',' * bool(side)}{side}; these count as ties."
        )
    elif (pairs := number(summary.get("order_disagreements"))) is not None:
        yield f"Asked in both orders, it contradicted itself on {counted(int(pairs), 'pair')}; these count as ties."
    unjudged = number(summary.get("unjudged"))
    if unjudged:
        yield f"{counted(int(unjudged), 'pair')} without a readable verdict; these count as ties."
    cost = mapping(summary.get("cost"))
    if cost:
        calls, spent = number(cost.get("calls")), number(cost.get("money"))
        parts = [f"{int(calls):,} calls"] if calls is not None else []
        parts += [f"{spent:,.2f} in the prices given"] if spent is not None else []
        if parts:
            yield f"Cost of this run at endpoints: {', '.join(parts)}."


def _history(run: Run) -> Markup:
    rows = []
    for line in reversed(run.history[-_EVALUATIONS:]):
        rate = rate_in(line)
        asked = f"against {text(line.get('baseline'))}, judged by {text(line.get('judge'))}"
        rates = ("", "") if rate is None else (f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}")
        rows.append((day(number(line.get("time"))), asked, _three(number(line.get("prompts"))), *rates))
    return table(("when", "what", "prompts", "win rate", "interval"), rows, words=[1])


def _worst(degeneration: Figures) -> Markup:
    """The prompts that show what got worse."""
    lines = []
    for name in items(degeneration.get("worse")):
        found = items(mapping(degeneration.get("worst")).get(str(name)))
        ids = [str(at(row, "id")) for row in found if at(row, "id") is not None]
        if ids:
            lines.append(f"{_NAMES.get(str(name), str(name).replace('_', ' '))}: prompts {', '.join(ids[:5])}")
    return Markup("<p>Seen most on:</p>") + listed(lines) if lines else NOTHING


def _suites(run: Run) -> Markup:
    rows, marked = [], []
    for place, (name, summary) in enumerate(run.suites.items()):
        head = mapping(summary.get("headline"))
        low, high = number(head.get("ci_low")), number(head.get("ci_high"))
        difference = number(head.get("difference"))
        lower = head.get("better") == "lower"
        worse = (low is not None and low > 0) if lower else (high is not None and high < 0)
        marked += [place] * worse
        span = f"{difference:+.3g} ({low:+.3g} to {high:+.3g})" if None not in (difference, low, high) else ""
        figure = f"{text(head.get('name'))}{', lower is better' * lower}"
        sides = (_three(number(head.get(side))) for side in ("base", "aligned"))
        rows.append((f"{name}{' (worse)' * worse}", figure, *sides, span))
    header = ("suite", "figure", "before", "after", "difference (interval)")
    lines = [f"{name}: {line}" for name, summary in run.suites.items() for line in sentences(summary.get("sentences"))]
    return table(header, rows, words=[1], worse=marked) + (listed(lines) if lines else NOTHING)


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
