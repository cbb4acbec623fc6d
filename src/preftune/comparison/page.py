"""The page of a comparison: the verdict, the table, reward against KL, the trials, answers, and the procedure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from preftune.amounts import counted
from preftune.comparison.chart import described, frontier
from preftune.comparison.plan import amount_in_words
from preftune.comparison.result import START, Result, Tried
from preftune.report.html.components import NOTHING, listed, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.run import charts
from preftune.report.run.answers import Entry, Side, entries_section
from preftune.report.run.headline import Rate
from preftune.statistics.intervals import WinRate
from preftune.storage.untrusted_json import prompt_text
from preftune.version import __version__


def comparison_page(result: Result) -> str:
    """The page of a result, as HTML."""
    titles = [method.title for method in result.methods]
    page = Page(f"{', '.join(titles[:-1])} or {titles[-1]}? · preftune compare", styles=["run.css"])
    sections = [
        ("figures", "Figures", _figures(page, result)),
        ("trials", "Trials", _trials(result)),
        ("answers", "Answers", _answers(page, result)),
        ("method", "How it was done", listed(_how(result))),
    ]
    return page.render(markup("components.body", _first_screen(page, result), sections, __version__))


def _first_screen(page: Page, result: Result) -> Markup:
    word, _, rest = result.verdict().partition(":")
    rates = {f"{final.method.title} against the start": _rate(final.against_start) for final in result.finals}
    if len(result.duels) == 1:
        duel = result.duels[0]
        rates = {f"{duel.first.title} against {duel.second.title}": _rate(duel.rate), **rates}
    label = "; ".join(f"{name} {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})" for name, rate in rates.items())
    data, tone = result.data, "unsure" if word.startswith("No ") else "good"
    asked = (
        f"{counted(data['train'], 'pair')} of {data['name']}, {result.budget.words()} per trial, "
        f"{counted(len(result.tried) // len(result.finals), 'trial')} each, judged by {result.judge} on "
        f"{counted(data['test'], 'prompt')}."
    )
    chart = page.chart("rates", charts.rates(rates), label=f"Win rates with their intervals: {label}")
    return markup("run.one", result.start, tone, word, "", rest.strip(), chart, NOTHING, asked)


def _figures(page: Page, result: Result) -> Markup:
    header, rows = result.table()
    cards = [panel("Methods", "", table(header, rows, wraps=len(rows[0]) < 6), full=True)]
    if len(result.duels) > 1:
        words = (
            "The win rate of the method in the row against the one in the column, with its 95% interval. An asterisk "
            "marks a difference that is significant for all these comparisons together."
        )
        cards.append(panel("Against each other", words, table(*result.duel_table()), full=True))
    chart = frontier(result)
    if chart is not None:
        words = (
            f"Every trial, on the prompts for choosing settings ({result.data['tune']:,}). Higher is better, further "
            "left is closer to the start; lines are 95% intervals over prompts."
        )
        drawn = page.chart("frontier", chart, label=described(result.tried))
        cards.append(panel("Reward against KL", words, drawn, full=True))
    return panels(*cards) + listed(result.sentences()[1:])


def _trials(result: Result) -> Markup:
    header = ["trial", "win rate", "KL", "gold", "steps", "of the budget", "wall time", "peak memory"]
    if result.gold is None:
        header.remove("gold")
    rows = []
    for trial in result.tried:
        name = f"{trial.method.title}, {trial.label}{' (chosen)' if trial.chosen else ''}"
        rows.append([name, *_trial_cells(trial, result)])
    return panels(panel("", "", table(header, rows), full=True))


def _trial_cells(trial: Tried, result: Result) -> list[str]:
    time = amount_in_words("seconds", trial.seconds)
    memory = "?" if trial.peak_gb is None else f"{trial.peak_gb:.2f} GB"
    used = amount_in_words(result.budget.unit, trial.used)
    far: Mapping[str, Any] | None = trial.distance
    gold = [] if result.gold is None else [f"{far['gold']['mean']:.2f}" if far and far["gold"] else ""]
    rate = "did not finish" if trial.win_rate is None else f"{trial.win_rate.win_rate:.1%}"
    kl = f"{far['kl']['mean']:.2f}" if far else ""
    return [rate, kl, *gold, f"{trial.outcome['steps']:,}", used, time, memory]


def _answers(page: Page, result: Result) -> Markup:
    titles = {method.name: method.title for method in result.methods}
    found = []
    for example in result.examples:
        answers, outcomes = example["answers"], example["outcomes"]
        sides = [Side(START, str(answers[START]), None, None, baseline=True)]
        sides += [Side(title, str(answers[name]), None, None, str(outcomes[name])) for name, title in titles.items()]
        found.append(Entry(str(example["id"]), prompt_text(example["prompt"]), "", sides))
    return entries_section(
        page, found, what="prompts, of the first seed", place="eval/*/generations.jsonl", total=result.data["test"]
    )


def _how(result: Result) -> Iterator[str]:
    data = result.data
    yield (
        f"All methods start from the same model and train on the same pairs ({data['train']:,}); settings are chosen "
        f"on {counted(data['tune'], 'prompt')}, and {data['test']:,} others are judged. No prompt is in two of these "
        "parts"
        + (f" ({counted(data['held_out'], 'pair')} left out of training for this)." if data["held_out"] else ".")
    )
    rewarded = [method.title for method in result.methods if method.needs_reward]
    shared = (
        f" The reward model is trained once for all trials of {', '.join(rewarded)} and counts in each of them, "
        "because each of them needs it."
    )
    yield (
        f"A trial may use {result.budget.words()}, and all methods have the same number of trials."
        + (shared if rewarded else "")
    )
    if result.reward_accuracy is not None:
        yield f"The reward model ranks {result.reward_accuracy:.1%} of the pairs that it was not trained on correctly."
    drawn = f"sampled at temperature {result.temperature:g}" if result.temperature else "decoded greedily"
    yield (
        "The KL is measured on answers sampled at temperature 1: log policy minus log start of whole answers. The "
        f"judged answers are {drawn}."
    )
    intervals = "prompts and seeds" if len(result.seeds) > 1 else "prompts"
    together = f" at {result.duels[0].strict.confidence:.2%}, 95% for all of them together" if result.duels[1:] else ""
    yield (
        f"A difference counts as shown when the interval of the direct comparison over {intervals} excludes 50%"
        f"{together or ' at 95%'}."
    )
    yield "Every training is a run directory under trials/, with the recipe that repeats it (--config)."


def _rate(rate: WinRate) -> Rate:
    return Rate(rate.win_rate, rate.ci_low, rate.ci_high, rate.confidence)
