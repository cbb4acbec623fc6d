"""Small pieces of markup that the sections of a page share. Everything that comes from data is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable

from preftune.report.html.document import escaped

_VALUE = r"(?: (?:[A-Z]+\b|\d+(?:\.\d+)?(?:e-?\d+)?\b|drop\b|\w+=\w+(?:\+\w+)?))*"
_COMMAND = re.compile(rf"(?<![\w-])(?:preftune [a-z]+(?: --[\w-]+{_VALUE})*|--[\w-]+(?:=(?!\w))?{_VALUE})")
"""A command or a flag with its values, as advice names them."""

_UNBROKEN = 30
"""Letters of a command that fit on one line of a phone."""


def panel(title: str, words: str, content: str, *, full: bool = False, aside: str = "", of: str = "") -> str:
    """A card with a heading.

    Args:
        words: a sentence below the heading.
        content: markup.
        aside: a number next to the heading, and what it counts.
    """
    told = f"<p>{escaped(words)}</p>" if words else ""
    whose = f"<small>{escaped(of)}</small>" if of else ""
    beside = f'<span class="aside">{whose}{escaped(aside)}</span>' if aside else ""
    return f'<section class="panel{" full" * full}"><h3>{escaped(title)}{beside}</h3>{told}{content}</section>'


def panels(*cards: str) -> str:
    """Cards side by side; below each other on a phone."""
    return f'<div class="panels">{"".join(cards)}</div>'


def marked_table(header: Iterable[str], rows: Iterable[str]) -> str:
    """A table of rows that are markup already.

    Args:
        header: names of the columns, escaped here.
    """
    rows, names = list(rows), list(header)
    cells = re.findall(r"<t[hd][^>]*>", rows[0]) if rows else []
    words = {column for column, cell in enumerate(cells) if 'class="words"' in cell}  # headed where the words begin
    marks = [' class="words"' if column in words else "" for column in range(len(names))]
    head = "".join(f'<th scope="col"{mark}>{escaped(name)}</th>' for name, mark in zip(names, marks, strict=True))
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{inner}</table></div>'


def loose(*cards: str) -> str:
    """Cards of differing height in two columns, each put where there is most room."""
    columns: tuple[list[str], list[str]] = ([], [])
    heights = [0.0, 0.0]
    for card in cards:
        shorter = int(heights[1] < heights[0])
        columns[shorter].append(card)
        heights[shorter] += _height(card)
    inner = "".join(f'<div class="column">{"".join(column)}</div>' for column in columns if column)
    return f'<div class="loose">{inner}</div>'


def _height(card: str) -> float:
    """About how many lines of text a card takes."""
    charts = sum(int(pixels) for pixels in re.findall(r"min-height:(\d+)px", card)) / 20
    return 4 + charts + 1.6 * card.count("<tr") + 1.4 * card.count("<li") + len(re.sub(r"<[^>]*>", "", card)) / 120


def listed(lines: Iterable[str], *, ordered: bool = False) -> str:
    """Sentences as a list, with the commands in them set as code."""
    tag = "ol" if ordered else "ul"
    return f'<{tag} class="plain">{"".join(f"<li>{with_commands(line)}</li>" for line in lines)}</{tag}>'


def with_commands(text: str) -> str:
    """Escaped text with its commands and flags set as code."""
    return _COMMAND.sub(_code, escaped(text))


def _code(found: re.Match[str]) -> str:
    short = ' class="short"' if len(found[0]) <= _UNBROKEN else ""
    return f"<code{short}>{found[0]}</code>"
