"""The comparison as one page: the verdict, the table, reward against KL, the trials, answers, and how it was done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from preftune.amounts import counted
from preftune.comparison.chart import described, frontier
from preftune.comparison.plan import METHODS, SHORT, amount_in_words
from preftune.comparison.result import Result, Tried
from preftune.report.html.components import NOTHING, listed, panel, panels, table
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.reading.untrusted_json import prompt_text
from preftune.report.run import charts
from preftune.report.run.answers import Entry, Side, entries_section
from preftune.report.run.headline import Rate
from preftune.statistics.intervals import WinRate
from preftune.version import __version__


def comparison_page(result: Result) -> str:
    """The whole page."""
    page = Page("DPO or PPO? · preftune compare", styles=["run.css"])
    sections = [
        ("figures", "Figures", _figures(page, result)),
        ("trials", "Trials", _trials(result)),
        ("answers", "Answers", _answers(page, result)),
        ("method", "How it was done", listed(_how(result))),
    ]
    return page.render(markup("components.body", _first_screen(page, result), sections, __version__))


def _first_screen(page: Page, result: Result) -> Markup:
    word, _, rest = result.verdict().partition(":")
    rates = {
        "DPO against PPO": _rate(result.head_to_head),
        **{f"{SHORT[m]} against the start": _rate(result.finals[m].against_start) for m in METHODS},
    }
    label = "; ".join(f"{name} {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})" for name, rate in rates.items())
    data, tone = result.data, "unsure" if word.startswith("No difference") else "good"
    asked = (
        f"{data['train']:,} pairs of {data['name']}, {result.budget.words()} a trial, "
        f"{counted(len(result.tried) // len(METHODS), 'trial')} each, judged by {result.judge} on "
        f"{data['test']:,} prompts."
    )
    chart = page.chart("rates", charts.rates(rates), label=f"Win rates with their intervals: {label}")
    return markup("run.one", result.start, tone, word, "", rest.strip(), chart, NOTHING, asked)


def _figures(page: Page, result: Result) -> Markup:
    header, rows = result.table()
    cards = [panel("Both methods", "", table(header, rows, wraps=True), full=True)]
    chart = frontier(result)
    if chart is not None:
        words = (
            f"Every trial, on the {result.data['tune']:,} prompts that settings are chosen by. Further up is better, "
            "further left is nearer to the start; lines are 95% intervals over prompts."
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
        name = f"{SHORT[trial.method]}, {trial.label}{' (chosen)' if trial.chosen else ''}"
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
    found = []
    swapped = {"win": "loss", "loss": "win"}
    for example in result.examples:
        outcome = str(example["dpo_against_ppo"])
        sides = [
            Side("start", str(example["start"]), None, None, baseline=True),
            Side("DPO", str(example["dpo"]), None, None, outcome),
            Side("PPO", str(example["ppo"]), None, None, swapped.get(outcome, outcome)),
        ]
        found.append(Entry(str(example["id"]), prompt_text(example["prompt"]), "", sides))
    return entries_section(
        page, found, what="prompts, of the first seed", place="eval/*/generations.jsonl", total=result.data["test"]
    )


def _how(result: Result) -> Iterator[str]:
    data = result.data
    yield (
        f"Both methods begin with the same model and train on the same {data['train']:,} pairs; {data['tune']:,} "
        f"prompts choose the settings, {data['test']:,} others are judged. No prompt is in two of these parts"
        + (f" ({data['held_out']:,} pairs are not trained on for that)." if data["held_out"] else ".")
    )
    yield (
        f"A trial may use {result.budget.words()}, and both methods have equally many trials. The reward model is "
        "trained once for all trials of PPO and counts in each of them, since one trial alone would need it."
    )
    if result.reward_accuracy is not None:
        yield f"The reward model is right on {result.reward_accuracy:.1%} of pairs that it was not trained on."
    drawn = f"drawn at temperature {result.temperature:g}" if result.temperature else "the likeliest, token by token"
    yield (
        "The KL is measured on answers sampled at temperature 1: log policy minus log start of whole answers. The "
        f"answers that are judged are {drawn}."
    )
    yield "A difference counts as shown when the 95% interval of the direct comparison leaves out 50%."
    yield "Every training is a run directory under trials/, with the recipe that repeats it (--config)."


def _rate(rate: WinRate) -> Rate:
    return Rate(rate.win_rate, rate.ci_low, rate.ci_high, rate.confidence)
