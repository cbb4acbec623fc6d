"""Rows with several answers to a prompt, which form a group: openbmb/UltraFeedback, scored lists, ranked lists.

- `ultrafeedback`: `instruction`, `completions` [{response, annotations: {helpfulness: {Rating}, ...},
  fine-grained_score, overall_score}]. An answer's score is the mean of its aspects' ratings, as Argilla's binarised
  set has it: the `overall_score` is wrong in many rows (10 where the critique means 1), so it comes last.
- `scored`: a prompt, a list of answers, and as many numbers (`scores`, `ratings`, `rewards`, higher is better; `ranks`,
  lower is better); or a list of objects that hold answer and score (or rank) together, such as Nectar's `answers`.
- `ranked`: a prompt and answers from best to worst, in a column with a telling name (`ranked_responses`, ...), or
    LLaMA-Factory's `output` [better, worse]. The order of plain `responses` is unknown: `--format ranked` declares them
    as ranked.
- `helpsteer2`: `prompt`, `response`, `helpfulness`: an answer per row, several rows to a prompt, rated from 0 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from preftune.data.formats.adapter import (
    ANSWERS,
    PROMPTS,
    Adapter,
    Left,
    Made,
    Row,
    Sample,
    asked_as,
    asked_columns,
    asked_of,
    number,
    rated_pairs,
    records,
)
from preftune.errors import DatasetError

if TYPE_CHECKING:
    from datasets import Dataset

_IN_ORDER = ("ranked_completions", "ranked_responses", "ranked_answers", "ranked_outputs", "ranking", "ranked")
_SCORES = ("scores", "ratings", "rewards", "all_rm_scores")
_RANKS = ("ranks", "rank")
_TEXT = ("completion", "response", "answer", "text", "content", "output", "generation")
_SCORE = ("score", "rating", "reward")
_MARK = "<extra_id_1>"
"""Precedes every turn but the first in HelpSteer's prompts, with the speaker on the same line."""


def _first(row: Mapping[str, Any] | Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _is_ultrafeedback(sample: Sample) -> bool:
    completions = records(sample.first("completions"))
    first = completions[0] if completions else None
    return "instruction" in sample and isinstance(first, Mapping) and "response" in first and "annotations" in first


def _ultrafeedback_rows(row: Row) -> Iterator[Made]:
    completions = [item for item in records(row.get("completions")) if isinstance(item, Mapping)]
    if row.get("instruction") is None or not completions:
        yield Left("one_completion" if row.get("instruction") is not None else "other_shape")
        return
    yield from rated_pairs(row["instruction"], [(item.get("response"), _rating(item)) for item in completions])


def _rating(completion: Mapping[str, Any]) -> float | None:
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, Mapping) else ()
    found = [number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, Mapping)]
    ratings = [rating for rating in found if rating is not None]
    if ratings:
        return sum(ratings) / len(ratings)
    fine = number(completion.get("fine-grained_score"))
    return number(completion.get("overall_score")) if fine is None else fine


def _is_scored(sample: Sample) -> bool:
    column = sample.name_of(ANSWERS)
    if column is None or sample.has("chosen", "rejected") or not sample.any(*PROMPTS) or _is_ultrafeedback(sample):
        return False
    answers = records(sample.first(column))
    together = bool(answers) and isinstance(answers[0], Mapping) and any(name in answers[0] for name in _TEXT)
    if together and any(name in answers[0] for name in (*_SCORE, "rank")):
        return True
    numbers = sample.name_of((*_SCORES, *_RANKS))
    values = records(sample.first(numbers)) if numbers else []
    return len(answers) > 1 and len(values) > 0


def _scored_rows(row: Row) -> Iterator[Made]:
    prompt, answers = asked_of(row), records(_first(row, ANSWERS))
    if prompt is None or not answers:
        yield Left("one_completion" if prompt is not None else "other_shape")
        return
    given, ranks = records(_first(row, _SCORES)), records(_first(row, _RANKS))
    objects = all(isinstance(answer, Mapping) and _first(answer, _TEXT) is not None for answer in answers)
    if objects and (_any_rated(answers) or not (given or ranks)):
        scores = [_score(_first(answer, _SCORE), answer.get("rank")) for answer in answers]
        answers = [_first(answer, _TEXT) for answer in answers]
    else:
        if len(given or ranks) != len(answers):
            yield Left("other_count")
            return
        scores = [_score(value, None) for value in given] or [_score(None, rank) for rank in ranks]
    yield from rated_pairs(prompt, list(zip(answers, scores, strict=True)), id=row.get("id"))


def _any_rated(answers: Iterable[Any]) -> bool:
    return any(_first(answer, (*_SCORE, "rank")) is not None for answer in answers)


def _score(score: Any, rank: Any) -> float | None:
    place = number(rank)
    return number(score) if score is not None else None if place is None else -place


def _is_ranked(sample: Sample) -> bool:
    return _ranked_column(sample) is not None and sample.any(*PROMPTS) and not _is_scored(sample)


def _ranked_column(sample: Sample) -> str | None:
    if sample.any("chosen", "rejected"):
        return None
    column = sample.name_of(_IN_ORDER)
    if column is None and sample.has("instruction", "output"):
        column = "output"
    ranked = records(sample.first(column)) if column is not None else []
    return column if len(ranked) > 1 and not all(isinstance(one, int | float) for one in ranked) else None


def _check_ranked(rows: Dataset, sample: Sample) -> None:
    """Refuses names of answers in place of the answers."""
    column = _ranked_column(sample)
    ranked = {str(one) for one in records(sample.first(column))} if column else set()
    others = next((sample.first(name) for name in ANSWERS if name in sample), None)
    answers = {str(_first(one, _TEXT) if isinstance(one, Mapping) else one) for one in records(others)}
    if ranked <= {*sample.columns} or (answers and not ranked & answers):
        raise DatasetError(
            f"The column {column!r} names answers ({', '.join(sorted(ranked))[:80]}), which are in other columns. "
            "Write the answers themselves from best to worst into 'ranked_responses', or a rank for each answer (1 is "
            "the best) into 'ranks'."
        )


def _ranked_rows(row: Row) -> Iterator[Made]:
    prompt, answers = asked_of(row), records(_first(row, (*_IN_ORDER, *ANSWERS, "output")))
    if prompt is None:
        yield Left("other_shape")
        return
    scored = [(answer, float(-place)) for place, answer in enumerate(answers)]
    yield from rated_pairs(prompt, scored, id=row.get("id"))


def _is_helpsteer2(sample: Sample) -> bool:
    return sample.has("prompt", "response", "helpfulness") and not sample.any("chosen", "rejected")


def _helpsteer2_pairs(rows: Iterable[Row]) -> Iterator[tuple[int, Made]]:
    """The pairs of the answers to each prompt, from all its rows; a pair's row number is that of the prompt's first
    row.
    """
    answers: dict[str, tuple[str, list[tuple[Any, float | None]]]] = {}
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        prompt, answer = row.get("prompt"), row.get("response")
        if not isinstance(prompt, str) or answer is None:
            yield index, Left("other_shape")
            continue
        key = asked_as(prompt, row)
        first.setdefault(key, index)
        answers.setdefault(key, (prompt, []))[1].append((answer, number(row.get("helpfulness"))))
    for key, (prompt, rated) in answers.items():
        yield from ((first[key], made) for made in rated_pairs(marked_turns(prompt), rated))


def marked_turns(prompt: Any) -> Any:
    """The turns of a prompt with HelpSteer's marks between them; any other prompt unchanged."""
    if not isinstance(prompt, str) or _MARK not in prompt:
        return prompt
    turns = [{"role": "user", "content": prompt.partition(_MARK)[0].strip()}]
    for part in prompt.split(_MARK)[1:]:
        speaker, _, content = part.partition("\n")
        turns.append({"role": speaker.strip().lower(), "content": content.strip()})
    return turns


def _scored_uses(sample: Sample) -> list[str]:
    names = (sample.name_of(group) for group in (ANSWERS, _SCORES, _RANKS))
    return [*asked_columns(sample), *(name for name in names if name is not None), "id"]


def _scored_ignores(sample: Sample) -> list[str]:
    return [name for group in (ANSWERS, _SCORES, _RANKS) for name in group if name != sample.name_of(group)]


def _ranked_ignores(sample: Sample) -> list[str]:
    """All but the ranked answers: the order of other columns is unknown."""
    used = _ranked_column(sample) or sample.name_of((*_IN_ORDER, *ANSWERS, "output"))
    return [name for name in (*_IN_ORDER, *ANSWERS, "output") if name != used]


def _ranked_uses(sample: Sample) -> list[str]:
    column = _ranked_column(sample) or sample.name_of((*_IN_ORDER, *ANSWERS, "output"))
    return [*asked_columns(sample), *([] if column is None else [column]), "id"]


ADAPTERS = (
    Adapter(
        "ultrafeedback",
        "an instruction and completions with ratings",
        _is_ultrafeedback,
        rows=_ultrafeedback_rows,
        uses=lambda sample: ("instruction", "completions"),
    ),
    Adapter(
        "scored",
        "a prompt and answers with scores or ranks",
        _is_scored,
        rows=_scored_rows,
        uses=_scored_uses,
        ignores=_scored_ignores,
    ),
    Adapter(
        "ranked",
        "a prompt and answers from best to worst",
        _is_ranked,
        rows=_ranked_rows,
        uses=_ranked_uses,
        ignores=_ranked_ignores,
        check=_check_ranked,
    ),
    Adapter(
        "helpsteer2",
        "an answer per row with its helpfulness, several to a prompt",
        _is_helpsteer2,
        table=_helpsteer2_pairs,
        uses=lambda sample: ("prompt", "response", "helpfulness"),
    ),
)
