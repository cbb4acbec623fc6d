"""Answers before and after, side by side, to be searched: of an evaluation, or the guard's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from preftune.report.html.components import NOTHING
from preftune.report.html.document import Page
from preftune.report.html.templates import markup
from preftune.report.reading.run_files import Answers, Run

_ROWS = 300
_BYTES = 1_150_000
"""Of all answers on a page, which stays under 3 MB with the 0.9 MB of its charts' library."""
_LONGEST, _SHORTEST = 3000, 240
"""Characters of one text."""
_THOUGHT = 1000
"""Characters of a thought that the template shows."""


@dataclass(slots=True)
class Side:
    """One answer to a prompt."""

    label: str
    text: str
    tokens: int | None
    finished: bool | None
    outcome: str = ""
    thought: str = ""
    baseline: bool = False
    """What stood there before, or another baseline's answer."""


@dataclass(slots=True)
class Entry:
    """One prompt with the answers of all runs to it."""

    id: str
    prompt: str
    category: str
    sides: list[Side] = field(default_factory=list)

    @property
    def outcomes(self) -> set[str]:
        return {side.outcome for side in self.sides if side.outcome}

    @property
    def marks(self) -> list[str]:
        """What the filter of outcomes finds the entry by."""
        marks = set(self.outcomes)
        if len(marks) > 1:
            marks.add("differs")
        if len(self.sides) > 1 and len({side.text for side in self.sides}) == 1:
            marks.add("same")
        return sorted(marks)


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The prompts of all runs, each with what stood there before (once, where the runs agree) and after."""
    if len(runs) == 1:
        return [entry_of(answer, before=runs[0].before) for answer in runs[0].shown_answers()]
    found: dict[tuple[str, int], Entry] = {}
    for run in runs:
        seen: dict[str, int] = {}
        for answer in run.shown_answers():
            seen[answer.prompt] = seen.get(answer.prompt, -1) + 1
            key = answer.prompt, seen[answer.prompt]  # several answers to one prompt stay several
            if key not in found:
                found[key] = entry_of(answer, before=run.before, after=run.name)
                continue
            label = f"before {run.name}" if run.before == "before" else run.before
            *baselines, after = entry_of(answer, before=label, after=run.name).sides
            for before in baselines:
                if all(side.text != before.text for side in found[key].sides if side.baseline):
                    found[key].sides.append(before)
            found[key].sides.append(after)
    return list(found.values())


def entry_of(answer: Answers, *, before: str = "before", after: str = "after") -> Entry:
    """One prompt of one run, its two answers under these labels, or the one that there is."""
    asked = []
    if answer.before is not None:
        tokens, finished = answer.tokens[0], answer.finished[0]
        asked.append(Side(before, answer.before, tokens, finished, thought=answer.thoughts[0], baseline=True))
    return Entry(
        answer.id,
        answer.prompt,
        answer.category,
        [
            *asked,
            Side(after, answer.after, answer.tokens[1], answer.finished[1], answer.outcome, answer.thoughts[1]),
        ],
    )


def answers_section(page: Page, runs: Sequence[Run]) -> Markup:
    """Markup of all answers, empty without answers; the page gets the script that searches them."""
    place = " and ".join(sorted({run.answers_place for run in runs if run.shown_answers()}))
    what = "prompts of the evaluation" if any(run.answers for run in runs) else "samples of the guard's last evaluation"
    return entries_section(page, entries(runs), what=what, place=place)


def entries_section(page: Page, found: Sequence[Entry], *, what: str, place: str, total: int | None = None) -> Markup:
    """Markup of answers to be searched, empty without answers.

    Args:
        what: the things counted.
        place: the file that holds all of them.
        total: how many there are there, where these are not all.
    """
    if not found:
        return NOTHING
    page.scripts.append("answers.js")
    shown, limit = _fitting(found, round(_BYTES * page.share))
    categories = [(name, name) for name in sorted({entry.category for entry in shown if entry.category})]
    names = {"win": "wins", "tie": "ties", "loss": "losses"}
    outcomes = [pair for pair in names.items() if any(pair[0] in entry.outcomes for entry in shown)]
    if outcomes and any(len(entry.sides) > 2 for entry in shown):
        outcomes.append(("differs", "runs differ"))
    outcomes.append(("same", "same answer"))
    return markup("answers.section", shown, total or len(found), what, place, limit, categories, outcomes)


def _fitting(found: Sequence[Entry], most: int) -> tuple[Sequence[Entry], int]:
    """The first entries and the characters of each text that keep within the page's bytes."""
    shown = found[:_ROWS]
    limit = _LONGEST
    while limit > _SHORTEST and _size(shown, limit) > most:
        limit //= 2
    while len(shown) > 1 and _size(shown, limit) > most:
        shown = shown[: len(shown) // 2]
    return shown, limit


def _size(shown: Sequence[Entry], limit: int) -> int:
    texts = [words[:limit] for entry in shown for words in (entry.prompt, *(side.text for side in entry.sides))]
    texts += [side.thought[:_THOUGHT] for entry in shown for side in entry.sides]
    # A long text stands there twice, its beginning once more; every side brings markup with it.
    return sum(len(escape(words).encode("utf-8", "replace")) * 5 // 4 + 400 for words in texts if words)
