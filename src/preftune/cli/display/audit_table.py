"""An audit on the terminal: a table of findings, or lines if the terminal is narrow or there is none."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.display.terminal import console as fitting_console

if TYPE_CHECKING:
    from preftune.audit import Audit, Finding

_NARROW = 100
"""Width in columns below which a terminal gets lines instead of a table."""

_STYLES = {"error": "bold red", "warning": "yellow", "info": "blue"}
_LONGEST = 300
"""Maximum number of characters of a sentence; audit.json has the whole sentence."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def show(result: Audit, written: Sequence[Path]) -> None:
    """Prints an audit.

    Args:
        written: the files of the audit, which are listed at the end.
    """
    terminal = sys.stdout.isatty()
    console = fitting_console(highlight=False, markup=False, soft_wrap=not terminal)
    for line in _head(result):
        console.print(line)
    if result.findings:
        console.print()
        if terminal and console.width >= _NARROW:
            console.print(_table(result.findings))
        else:
            for finding in result.findings:
                console.print(_line(finding))
            console.print()
    for line in _tail(result, written):
        console.print(line)


def _head(result: Audit) -> Iterator[str]:
    rows = result.figures["rows"]
    read_as = f", read as {rows['format']} ({rows['holds']})" if rows["format"] else ""
    prompts = result.figures["duplicates"]["prompts"]
    different = f", {counted(prompts, 'different prompt')}" if prompts else ""
    yield plain(f"{result.name}: {counted(result.rows, 'row')}, {counted(result.pairs, 'pair')}{different}{read_as}.")
    for sentence in result.figures.get("diversity", {}).get("sentences", ()):
        yield plain(sentence)
    counts = {severity: sum(f.severity == severity for f in result.findings) for severity in ("error", "warning")}
    problems = [counted(count, name) for name, count in counts.items() if count]
    yield f"{' and '.join(problems)}." if problems else "No problems were found."


def _table(findings: Sequence[Finding]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_lines=False)
    table.add_column("", no_wrap=True)
    table.add_column("finding", ratio=5)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("rows", min_width=8)
    table.add_column("fix", ratio=4)
    for finding in findings:
        what = Text(finding.kind.title, style="bold")
        if finding.detail:
            what.append(f"\n{plain(finding.detail)}", style="dim not bold")
        table.add_row(
            Text(finding.severity, style=_STYLES[finding.severity]),
            what,
            f"{finding.count:,}",
            _percent(finding.share),
            ", ".join(str(example.row) for example in finding.examples),
            Text(finding.kind.fix),
        )
    return table


def _line(finding: Finding) -> Any:
    from rich.text import Text

    rows = ", ".join(str(example.row) for example in finding.examples)
    where = f", rows {rows}" if rows else ""
    line = Text(finding.severity, style=_STYLES[finding.severity])
    line.append(f"  {finding.kind.title}", style="bold")
    line.append(f": {finding.count:,} ({_percent(finding.share)}){where}.", style="none")
    line.append(f" {plain(finding.detail)}" if finding.detail else "", style="none")
    line.append(f" {finding.kind.fix}", style="none")
    return line


def _tail(result: Audit, written: Sequence[Path]) -> Iterator[str]:
    lengths = result.figures["lengths"]
    if lengths["pairs"]:
        values, unit = lengths["percentiles"], lengths["unit"]
        sides = ", ".join(
            f"{part} {values[part]['p50']:,.0f} (95%: {values[part]['p95']:,.0f})"
            for part in ("prompt", "chosen", "rejected")
        )
        yield f"Median {unit}: {sides}."
        if unit == "words":
            yield (
                "Lengths are counted in words; with --model or --tokenizer they are counted in tokens, and the rows "
                "that max_length would cut are reported."
            )
    reference = result.figures.get("reference", {})
    if reference.get("pairs"):
        whole, each = reference["margin"], reference["margin_per_token"]
        yield (
            f"Before training the model prefers the chosen answer in {whole['accuracy']:.1%} of the pairs "
            f"({whole['low']:.1%} to {whole['high']:.1%}), token for token in {each['accuracy']:.1%}."
        )
    held_out = result.figures["size"]["held_out"]
    yield (
        f"About {counted(held_out['needed'], 'held-out pair')} are needed to detect a change of "
        f"{held_out['change']:.0%} in accuracy."
    )
    yield f"Written in {result.seconds:.1f} s: {', '.join(str(path) for path in written)}"


def plain(text: str) -> str:
    """Text from the data, shortened and without terminal control characters."""
    shown = _UNPRINTABLE.sub("\ufffd", " ".join(text.split()))
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def _percent(share: float) -> str:
    if share >= 0.9995:
        return "all"
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"
