"""Small pieces of markup that the sections of a page share; text is escaped, markup of other components is not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from markupsafe import Markup

from preftune.report.html.templates import markup

NOTHING = Markup("")


def panel(title: str, words: str, content: Markup, *, full: bool = False, aside: str = "", of: str = "") -> Markup:
    """A card with a heading.

    Args:
        words: a sentence below the heading.
        aside: a number next to the heading, and in `of` what it counts.
    """
    return markup("components.panel", title, words, content, full, aside, of)


def panels(*cards: Markup) -> Markup:
    """Cards side by side; below each other on a phone."""
    return markup("components.panels", cards)


def table(
    header: Sequence[object],
    rows: Iterable[Iterable[object]],
    *,
    wraps: bool = False,
    words: Collection[int] = (),
    worse: Collection[int] = (),
) -> Markup:
    """A table whose first column is text and whose others are numbers.

    Args:
        wraps: cells may have several lines.
        words: places of other columns of text.
        worse: places of rows that are marked.
    """
    return markup("components.table", header, list(rows), wraps, words, worse)


def listed(lines: Iterable[str], *, ordered: bool = False) -> Markup:
    """Sentences as a list, with the commands in them set as code."""
    return markup("components.listed", list(lines), ordered)


def loose(*cards: Markup) -> Markup:
    """Cards of differing height in two columns, each put where there is most room."""
    columns: tuple[list[Markup], list[Markup]] = ([], [])
    heights = [0.0, 0.0]
    for card in cards:
        shorter = int(heights[1] < heights[0])
        columns[shorter].append(card)
        heights[shorter] += _height(card)
    return markup("components.columns", columns)


def _height(card: str) -> float:
    """About how many lines of text a card takes."""
    charts = sum(int(pixels) for pixels in re.findall(r"min-height:(\d+)px", card)) / 20
    return 4 + charts + 1.6 * card.count("<tr") + 1.4 * card.count("<li") + len(re.sub(r"<[^>]*>", "", card)) / 120
