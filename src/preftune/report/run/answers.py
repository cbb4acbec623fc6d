"""Answers before and after, side by side, to be searched: of an evaluation, or the guard's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from preftune.report.html.document import Page, escaped, text_block
from preftune.report.reading.run_files import Answers, Run

_ROWS = 300
_BYTES = 1_150_000
"""Of all answers on a page, which stays under 3 MB with the 0.9 MB of its charts' library."""
_LONGEST, _SHORTEST = 3000, 240
"""Characters of one text."""
_THOUGHT = 1000
"""Characters of a thought."""


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


def answers_section(page: Page, runs: Sequence[Run]) -> str:
    """Markup of all answers, empty without answers; the page gets the script that searches them."""
    place = " and ".join(sorted({run.answers_place for run in runs if run.shown_answers()}))
    what = "prompts of the evaluation" if any(run.answers for run in runs) else "samples of the guard, its last look"
    return entries_section(page, entries(runs), what=what, place=place)


def entries_section(page: Page, found: Sequence[Entry], *, what: str, place: str, total: int | None = None) -> str:
    """Markup of answers to be searched, empty without answers.

    Args:
        what: the things counted.
        place: the file that holds all of them.
        total: how many there are there, where these are not all.
    """
    if not found:
        return ""
    page.scripts.append("answers.js")
    shown, limit = _fitting(found, round(_BYTES * page.share))
    introduction = _introduction(len(shown), total or len(found), what, place)
    return "".join([introduction, *_toolbar(shown), *_articles(shown, limit)])


def side_block(side: Side, body: str) -> str:
    """One answer with its label, how it was judged, and its length.

    Args:
        body: markup of the answer itself.
    """
    kind = "before" if side.baseline else "after"
    length = "" if side.tokens is None else f"{side.tokens:,} tokens"
    cut = ", cut off" if side.finished is False else ""
    judged = f'<span class="outcome {escaped(side.outcome)}">{escaped(side.outcome)}</span>' if side.outcome else ""
    name = f"<b><bdi>{escaped(side.label)}</bdi>{judged}<small>{length}{cut}</small></b>"
    return f'<div class="part {kind}">{name}{_folded(side.thought)}{body}</div>'


def _folded(thought: str) -> str:
    """A thought, shown on demand."""
    if not thought:
        return ""
    shown = text_block(thought[:_THOUGHT], characters=len(thought), rest="in the file")
    return f'<details class="thought"><summary>thought, {len(thought):,} characters</summary>{shown}</details>'


def _introduction(shown: int, total: int, what: str, place: str) -> str:
    if shown < total:
        return f'<p class="lead">The first {shown:,} of {total:,} {what}; all of them are in {escaped(place)}.</p>'
    return f'<p class="lead">All {total:,} {what}, from {escaped(place)}.</p>'


def _toolbar(shown: Sequence[Entry]) -> Iterator[str]:
    """Search and filters; the script shows them, without it all answers stand there."""
    categories = sorted({entry.category for entry in shown if entry.category})
    outcomes = [name for name in ("win", "tie", "loss") if any(name in entry.outcomes for entry in shown)]
    yield '<form class="toolbar" id="filter" role="search" hidden>'
    yield '<label class="search"><span>Search</span><input type="search" id="search" autocomplete="off" '
    yield 'placeholder="words of a prompt or an answer"></label>'
    if categories:
        yield _select("category", "Category", [("", "all categories"), *((name, name) for name in categories)])
    names = {"win": "wins", "tie": "ties", "loss": "losses"}
    several = any(len(entry.sides) > 2 for entry in shown)
    options = [(name, names[name]) for name in outcomes]
    if several and outcomes:
        options.append(("differs", "runs differ"))
    options.append(("same", "same answer"))
    yield _select("outcome", "Outcome", [("", "all outcomes"), *options])
    yield '<output id="found" aria-live="polite"></output></form>'


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f'<option value="{escaped(value)}">{escaped(shown)}</option>' for value, shown in options)
    return f'<label><span>{escaped(label)}</span><select id="{name}">{inner}</select></label>'


def _articles(shown: Sequence[Entry], limit: int) -> Iterator[str]:
    yield '<div class="answers" id="all-answers">'
    for number, entry in enumerate(shown, start=1):
        marks = " ".join(sorted(_marks(entry)))
        heading = f"answer-{number}"
        yield f'<article class="answer" data-category="{escaped(entry.category)}" data-marks="{escaped(marks)}"'
        yield f' aria-labelledby="{heading}"><h3 id="{heading}"><span class="where">{number:,}'
        yield f"{' · ' + escaped(entry.category) if entry.category else ''}</span>{_flags(entry)}</h3>"
        yield f'<div class="question">{_cut(entry.prompt, limit)}</div>'
        yield f'<div class="sides of-{min(4, len(entry.sides))}">'
        yield from (side_block(side, _cut(side.text, limit)) for side in entry.sides)
        yield "</div></article>"
    yield '</div><p class="none" id="none" hidden>No answer has all of these words.</p>'
    yield '<p class="more-answers"><button type="button" id="more" hidden>Show more</button></p>'


def _cut(words: str, limit: int) -> str:
    return text_block(words[:limit], characters=len(words), rest="in the file")


def _marks(entry: Entry) -> set[str]:
    marks = set(entry.outcomes)
    if len(entry.outcomes) > 1:
        marks.add("differs")
    if len(entry.sides) > 1 and len({side.text for side in entry.sides}) == 1:
        marks.add("same")
    return marks


def _flags(entry: Entry) -> str:
    marks = _marks(entry)
    if "differs" in marks:
        return '<span class="flag">runs differ</span>'
    return '<span class="flag quiet">same answer</span>' if "same" in marks else ""


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
    return sum(len(escaped(words).encode("utf-8", "replace")) * 5 // 4 + 400 for words in texts if words)
