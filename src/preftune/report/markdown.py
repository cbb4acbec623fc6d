"""The report as Markdown for a pull request, in which nothing of the data is markup, a mention or a link."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from preftune.report.reading.run_files import Run
from preftune.report.reading.seeds import Seeds
from preftune.report.run.answers import Entry, entries
from preftune.report.run.headline import (
    asked,
    cautions,
    headline,
    headline_over_seeds,
    judged_unlike,
    last,
    missing_files,
    next_steps,
    rules,
    spreads,
    verdict_name,
    win_rate,
)
from preftune.report.run.settings import Row, command, first_settings, versions
from preftune.storage.untrusted_json import at, number, text

_SHOWN = 5
"""Prompts with their answers."""
_MOST = 65_000
"""Characters of a comment that GitHub takes, nearly; fewer answers are shown where there would be more."""
_LONGEST = 700
"""Characters of an answer."""
_ALARMS = 12
_SPECIAL = re.compile(r"[^\w\s.,;:()%'\"/+=-]|_", re.ASCII)
"""ASCII characters that some Markdown reads as markup: all but letters, digits and the harmless ones."""
_NUMBERED = re.compile(r"(?m)^(\s*)(\d+)([.)])(?=\s|$)|^(\s*)([-+=])(?=[\s=-]|$)")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp|www|GH)(?=[:.-])")
_BREAK = "\u200b"
"""A space of no width: what must not be joined is parted by it."""


def markdown_report(runs: Sequence[Run], *, seeds: Seeds | None = None) -> str:
    """The text of a pull request's comment, in GitHub's Markdown."""
    for shown in (_SHOWN, 3, 1, 0):
        found = _report(runs, seeds, shown)
        if len(found) <= _MOST:
            break
    return found


def _report(runs: Sequence[Run], seeds: Seeds | None, shown: int) -> str:
    lines = [*(_one(runs[0]) if seeds is None and len(runs) == 1 else _several(runs, seeds))]
    known = [*filter(None, [judged_unlike(runs)]), *(_named(run, line, runs) for run in runs for line in cautions(run))]
    lines += _listed("Please note", known)
    lines += _listed("The rules of the verdict", [_named(run, line, runs) for run in runs for line in rules(run)])
    lines += _listed("Next", [_named(run, line, runs) for run in runs for line in next_steps(run)])
    lines += _alarms(runs)
    lines += _answers(runs, shown) if shown else []
    lines += _folded("Settings", _settings([*first_settings(runs), *versions(runs)], runs))
    commands = [line for run in runs if (line := command(run))]
    if commands:
        lines += _folded("Repeat it", [_fenced("\n".join(commands), "sh")])
    lines += [f"> {inert(line)}" for line in missing_files(runs)]
    return "\n".join(lines).rstrip() + "\n"


def inert(words: str) -> str:
    """Text on one line that shows as it is: no markup, no mention, no link, no reference to an issue."""
    flat = " ".join(_visible(words).split())
    return _inert(flat)


def _inert(words: str) -> str:
    escaped = _SPECIAL.sub(_entity, words)
    escaped = _ADDRESS.sub(lambda found: f"{found[0]}{_BREAK}", escaped)
    return _NUMBERED.sub(lambda f: f"{f[1]}{f[2]}&#{ord(f[3])};" if f[2] else f"{f[4]}&#{ord(f[5])};", escaped)


def _entity(found: re.Match[str]) -> str:
    """A character by its number; letters of other scripts stay as they are."""
    character = found[0]
    if not character.isascii():
        return character
    return f"&#{ord(character)};" + (_BREAK if character in "@#" else "")


def _visible(words: str) -> str:
    """Without control characters, halves of pairs, and marks that turn the direction of what follows."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", words)


def _one(run: Run) -> Iterator[str]:
    lines = headline(run)
    yield f"### {inert(lines.word)} {inert(lines.rest)}"
    yield ""
    if lines.interval:
        yield f"{inert(lines.interval)}"
        yield ""
    if asked(run):
        yield inert(asked(run))
        yield ""
    rows = list(_figures(run))
    if rows:
        yield f"| | {inert(run.before)} | after |"
        yield "|---|--:|--:|"
        yield from (f"| {inert(name)} | {before} | {after} |" for name, before, after in rows)
        yield ""


def _figures(run: Run) -> Iterator[tuple[str, str, str]]:
    summary = run.summary
    for name, form, path in (
        ("answers with the key fact", ".1%", ("key_fact_rate", "{side}", "rate")),
        ("tokens per answer", ".0f", ("mean_tokens", "{side}")),
        ("answers ended by the model", ".1%", ("finished", "{side}")),
        ("repetitive answers", ".1%", ("degeneration", "figures", "repeats", "{side}")),
    ):
        sides = [
            number(at(summary, *(part.format(side=side) if "{" in part else part for part in path)))
            for side in ("base", "aligned")
        ]
        if sides[0] is not None and sides[1] is not None:
            yield name, format(sides[0], form), format(sides[1], form)
    equal = number(at(summary, "length_controlled", "win_rate"))
    if equal is not None:
        yield "win rate at equal length", "", f"{equal:.1%}"
    for name, form, metric in (
        ("held-out margin", ".2f", "eval_rewards/margins"),
        ("held-out accuracy", ".1%", "eval_rewards/accuracies"),
    ):
        value = last(run, metric)
        if value is not None:
            yield name, "", format(value, form)


def _several(runs: Sequence[Run], seeds: Seeds | None) -> Iterator[str]:
    if seeds is None:
        yield f"### {len(runs)} runs side by side"
    else:
        lines = headline_over_seeds(seeds, len(runs))
        yield f"### {inert(lines.word)} {inert(lines.rest)}"
        yield ""
        yield inert(lines.interval)
        yield from (f"- {inert(line)}" for line in spreads(seeds))
    yield ""
    yield "| run | verdict | win rate | 95% interval | held-out margin | accuracy | alarms |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for run in runs:
        rate, margin = win_rate(run), last(run, "eval_rewards/margins")
        accuracy = last(run, "eval_rewards/accuracies")
        cells = [
            inert(run.name),
            inert(verdict_name(run) or headline(run).word.rstrip(":,")),
            f"{rate.rate:.1%}" if rate else "",
            f"{rate.low:.1%} to {rate.high:.1%}" if rate else "",
            "" if margin is None else f"{margin:.2f}",
            "" if accuracy is None else f"{accuracy:.1%}",
            str(sum(alarm.get("level") == "alarm" for alarm in run.alarms)),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _named(run: Run, line: str, runs: Sequence[Run]) -> str:
    return f"{run.name}: {line}" if len(runs) > 1 else line


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"**{title}**", "", *(f"- {inert(line)}" for line in lines), ""] if lines else []


def _alarms(runs: Sequence[Run]) -> list[str]:
    found = [
        f"{_named(run, text(alarm.get('name')).replace('-', ' '), runs)}, "
        f"step {int(number(alarm.get('step')) or 0):,}: {text(alarm.get('seen'))} {text(alarm.get('remedy'))}"
        for run in runs
        for alarm in run.alarms
    ]
    more = [f"{len(found) - _ALARMS:,} more are in guard.jsonl."] if len(found) > _ALARMS else []
    return _listed("Alarms of the guard", [*found[:_ALARMS], *more])


def _answers(runs: Sequence[Run], most: int) -> list[str]:
    """A few answers, evenly over the file, those first that were won or lost."""
    found = entries(runs)
    decided = [entry for entry in found if entry.outcomes - {"tie"}] or found
    step = max(1, len(decided) // most)
    shown = decided[::step][:most]
    if not shown:
        return []
    body = [line for entry in shown for line in _entry(entry)]
    return _folded(f"Before and after: {len(shown)} of {len(found):,} prompts", body)


def _entry(entry: Entry) -> Iterator[str]:
    yield f"**{inert(_short(entry.prompt, 200))}**"
    yield ""
    for side in entry.sides:
        judged = f" ({side.outcome})" if side.outcome else ""
        yield f"{inert(side.label)}{judged}"
        yield _fenced(_short(side.text, _LONGEST) or "(empty)", "text")
        yield ""


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[:most]}… ({len(words) - most:,} more characters)"


def _settings(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    names = [inert(run.name) for run in runs] if len(runs) > 1 else [""]
    table = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    return [*table, *(f"| {inert(row.name)} | {' | '.join(map(inert, row.values))} |" for row in rows)]


def _folded(title: str, body: Sequence[str]) -> list[str]:
    return [f"<details><summary>{inert(title)}</summary>", "", *body, "", "</details>", ""]


def _fenced(words: str, language: str) -> str:
    """A block in which nothing is markup: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{_visible(words)}\n{fence}"
