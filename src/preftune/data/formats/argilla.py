"""Exports of Argilla: records with several answers as fields, and annotators' responses to questions about them.

The fields are a prompt and answers with a number in their names (`response_1`, `response2`, `generation-1`, ...).
Argilla 2 puts a question's responses into `QUESTION.responses`, a list with an entry per annotator
(`QUESTION.responses.users`, `QUESTION.responses.status`); Argilla 1 into `QUESTION` itself, [{user_id, value, status}].
Supported responses are rankings (the answers' names from best to worst, or with their ranks), choices (the name of the
better answer) and ratings (a question per answer, whose name ends in the answer's number). Only submitted responses
count.

Of two answers, the one that more annotators prefer is chosen. `agreement` is their share, `strength` the mean
difference in points or ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from preftune.data.formats.adapter import PROMPTS, Adapter, Left, Made, Row, Sample, number, records

_ANSWER = re.compile(r"(?:response|completion|generation|answer|output|text)s?(?:[-_ ]?\d+|[-_ ][a-dA-D])")
_LAST = re.compile(r"(?:(?<!\d)(\d+)|(?:\A|[-_ ])([a-dA-D]))\Z")
_RESPONSES = ".responses"

Votes = dict[str, dict[str, float]]
"""Annotator -> answer's name -> score, higher is better."""


def _is_argilla(sample: Sample) -> bool:
    answers = [column for column in sample.columns if _ANSWER.fullmatch(column)]
    if len(answers) < 2 or not sample.any(*PROMPTS):
        return False
    return any(_is_question(column, sample.first(column)) for column in sample.columns)


def _is_question(column: str, value: Any) -> bool:
    if column.endswith(_RESPONSES):
        return True
    found = records(value)
    return bool(found) and isinstance(found[0], Mapping) and {"value", "status"} <= set(found[0])


def _rows(row: Row) -> Iterator[Made]:
    answers = {column: value for column, value in row.items() if _ANSWER.fullmatch(column) and value is not None}
    prompt = next((row[name] for name in PROMPTS if row.get(name) is not None), None)
    if prompt is None:
        yield Left("other_shape")
        return
    if len(answers) < 2:
        yield Left("one_completion")
        return
    votes = _votes(row, list(answers))
    if not votes:
        yield Left("unrated")
        return
    name = next((row[key] for key in ("id", "external_id") if row.get(key) is not None), None)
    for one, other in combinations(answers, 2):
        apart = [scores[one] - scores[other] for scores in votes.values() if one in scores and other in scores]
        balance = sum((gap > 0) - (gap < 0) for gap in apart)
        if not apart:
            yield Left("unrated")
        elif balance == 0:
            yield Left("tied")
        else:
            better, worse = (one, other) if balance > 0 else (other, one)
            yield {
                "prompt": prompt,
                "chosen": answers[better],
                "rejected": answers[worse],
                "agreement": sum(gap * balance > 0 for gap in apart) / len(apart),
                "strength": abs(sum(apart)) / len(apart),
                "id": name,
            }


def _votes(row: Row, answers: list[str]) -> Votes:
    votes: Votes = {}
    for column, value in row.items():
        question = column.removesuffix(_RESPONSES)
        if value is None or not _is_question(column, value):
            continue
        for place, (user, given) in enumerate(_submitted(row, column)):
            scores = _scores(question, given, answers)
            if scores:
                votes.setdefault(str(place if user is None else user), {}).update(scores)
    return votes


def _submitted(row: Row, column: str) -> list[tuple[Any, Any]]:
    """(annotator, value) of the submitted responses to one question."""
    found = records(row[column])
    if not column.endswith(_RESPONSES):
        items = [item for item in found if isinstance(item, Mapping)]
        return [(item.get("user_id"), item.get("value")) for item in items if item.get("status") in (None, "submitted")]
    users, statuses = records(row.get(f"{column}.users")), records(row.get(f"{column}.status"))
    return [
        (users[place] if place < len(users) else None, value)
        for place, value in enumerate(found)
        if place >= len(statuses) or statuses[place] in (None, "submitted")
    ]


def _scores(question: str, given: Any, answers: list[str]) -> dict[str, float]:
    """The scores that one response gives to the answers."""
    if isinstance(given, Mapping) and "rank" in given:  # Argilla 1: {"rank": [...], "value": [...]}
        names, ranks = records(given.get("value")), records(given["rank"])
        given = [{"value": name, "rank": rank} for name, rank in zip(names, ranks, strict=False)]
    if isinstance(given, list | tuple):
        ranking = {}
        for place, item in enumerate(given):
            name, rank = (item.get("value"), item.get("rank")) if isinstance(item, Mapping) else (item, None)
            known, at = _named(name, answers), number(rank)
            if known is not None:
                ranking[known] = -(float(place) if at is None else at)
        return ranking
    points, end = number(given), _end(question)
    if points is not None and end:
        return {name: points for name in answers if _end(name) == end}
    best = _named(given, answers)
    return {name: float(name == best) for name in answers} if best is not None else {}


def _named(name: Any, answers: list[str]) -> str | None:
    """The answer that a response names, by its field or by the number at its end."""
    if not isinstance(name, str):
        return None
    end = _end(name)
    return name if name in answers else next((answer for answer in answers if end and _end(answer) == end), None)


def _end(name: str) -> str:
    """The number or letter at the end of a name; empty if there is none."""
    found = _LAST.search(name)
    return (found.group(1) or found.group(2)).lower() if found else ""


def _uses(sample: Sample) -> list[str]:
    """The prompt, the answers, and the columns of the questions about them."""
    prompt = sample.name_of(PROMPTS)
    answers = [column for column in sample.columns if _ANSWER.fullmatch(column)]
    asked = [column for column in sample.columns if _is_question(column, sample.first(column))]
    about = [column for column in sample.columns if any(column.startswith(f"{name}.") for name in asked)]
    return [*([] if prompt is None else [prompt]), *answers, *asked, *about, "id", "external_id"]


ADAPTERS = (Adapter("argilla", "answers, and annotators' responses about them", _is_argilla, rows=_rows, uses=_uses),)
