"""The output of `preftune eval`: the verdict first, then the reasons, then the advice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preftune.amounts import counted
from preftune.cli.display.terminal import console as fitting_console
from preftune.cli.flags.messages import tell

if TYPE_CHECKING:
    from preftune.evaluation.suites.result import SuiteResult
    from preftune.evaluation.two_models.summary import Summary
    from preftune.statistics.intervals import WinRate

_MOST = 20
"""Maximum number of categories shown; `source` may differ for every row."""
_STYLE = {"good": "bold green", "bad": "bold red", "unsure": "bold yellow"}


def show(summary: Summary, folder: Path) -> None:
    """Prints a coloured table on a terminal, and one plain line per fact in a pipe."""
    console = fitting_console(highlight=False)
    if not console.is_terminal:
        _show_plain(summary, folder)
        return
    decision = summary.decision
    verdict, *others = summary.sentences()
    console.print()
    console.print(Text(decision.name.upper(), style=_STYLE[decision.tone]))
    console.print(Text(verdict))
    who = f"{summary.aligned_name} against {summary.baseline_name}, judged by {summary.judge}"
    console.print(Text(who, style="dim"))
    for sentence in others:
        console.print(Text(f"- {sentence}"))
    if len(summary.categories) > 1:
        console.print()
        console.print(_categories(_largest(summary.categories), console.width))
        if len(summary.categories) > _MOST:
            console.print(Text(_others(summary.categories)))
    _section(console, "The rules of the verdict", [rule.line() for rule in decision.rules])
    _section(console, "How the answers look", summary.degeneration.sentences())
    _section(console, "What to do now", summary.next_steps())
    console.print(Text(f"\nAll answers, verdicts and figures: {folder}"), soft_wrap=True)


def _section(console: Console, title: str, sentences: list[str]) -> None:
    if not sentences:
        return
    console.print(Text(f"\n{title}", style="bold"))
    for sentence in sentences:
        console.print(Text(f"- {sentence}"))


def _categories(categories: dict[str, WinRate], width: int) -> Table:
    """One row per category; a narrow terminal gets the rates without the counts."""
    wide = width >= 72
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", overflow="fold")
    for column in ("win rate", "interval", "n", *(("wins", "ties", "losses") if wide else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for name, rate in categories.items():
        counts = [str(rate.wins), str(rate.ties), str(rate.losses)] if wide else []
        interval = f"{rate.ci_low:.0%} to {rate.ci_high:.0%}"
        table.add_row(Text(_plain(name)), f"{rate.win_rate:.0%}", interval, str(rate.n), *counts)
    return table


def _largest(categories: dict[str, WinRate]) -> dict[str, WinRate]:
    """The categories with the most comparisons, in their original order."""
    kept = set(sorted(categories, key=lambda name: -categories[name].n)[:_MOST])
    return {name: rate for name, rate in categories.items() if name in kept}


def _plain(name: str) -> str:
    """The text on one line, without terminal control characters."""
    return "".join(character for character in " ".join(name.split()) if character.isprintable())


def _others(categories: dict[str, WinRate]) -> str:
    return (
        f"{counted(len(categories) - _MOST, 'smaller category is', 'smaller categories are')} in summary.json; --by "
        "COLUMN groups by another column."
    )


def _show_plain(summary: Summary, folder: Path) -> None:
    tell(f"verdict: {summary.verdict.name}")
    for sentence in summary.sentences():
        tell(sentence)
    for rule in summary.decision.rules:
        tell(f"rule {rule.line()}")
    if len(summary.categories) > 1:
        for name, rate in _largest(summary.categories).items():
            tell(
                f"category {_plain(name)}: {rate.win_rate:.1%} (95% interval {rate.ci_low:.1%} to {rate.ci_high:.1%}), "
                f"{counted(rate.wins, 'win')}, {counted(rate.ties, 'tie')}, {counted(rate.losses, 'loss', 'losses')}"
            )
        if len(summary.categories) > _MOST:
            tell(_others(summary.categories))
    for sentence in summary.degeneration.sentences():
        tell(sentence)
    for sentence in summary.next_steps():
        tell(f"next: {sentence}")
    tell(f"All answers, verdicts and figures: {folder}")


def show_suite(result: SuiteResult, folder: Path) -> None:
    """A suite's table and sentences."""
    console = fitting_console(highlight=False)
    rows = result.table()
    if not console.is_terminal:
        for row in rows:
            tell(f"{result.name}: {' | '.join(cell.strip() for cell in row)}")
        for sentence in result.sentences():
            tell(sentence)
        tell(f"All its results: {folder / result.name}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(("figure", "baseline", "aligned", "difference", "")):
        table.add_column(title, justify="right" if 0 < number < 4 else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(f"\n{result.name}", style="bold"))
    console.print(table)
    for sentence in result.sentences():
        console.print(Text(f"- {sentence}"))
    console.print(Text(f"All its results: {folder / result.name}"), soft_wrap=True)
