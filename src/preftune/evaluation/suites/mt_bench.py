"""MT-Bench (Zheng et al. 2023, arXiv:2306.05685): 80 questions of two turns, in eight categories.

Two figures, as FastChat computes them. Single-answer grading: a judge rates every answer from 1 to 10, and the score is
the mean over both turns of all questions (ratings that cannot be read are left out). Pairwise: both answers are shown
to the judge in both orders; a win counts only if both orders agree, everything else is a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.evaluation.suites import mt_bench_prompts as prompts
from preftune.evaluation.suites.asking import answer_side, ask, cut_off, need_asker
from preftune.evaluation.suites.mt_bench_prompts import Reference, Templates, Turn
from preftune.evaluation.suites.result import SuiteResult
from preftune.evaluation.suites.sources import HubData, Row, look_at_some, missing_column, read_rows
from preftune.evaluation.two_models.answers import write_results
from preftune.generation.protocol import Kept, Side
from preftune.generation.thoughts import split_thoughts
from preftune.statistics.intervals import win_rate
from preftune.statistics.paired import Comparison, by_group, compare_means, compare_win_rate, members_by

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest
    from preftune.types import Text

T = TypeVar("T")
Said: TypeAlias = Sequence[tuple[Kept, Kept]]
"""Both turns' answers of one model."""
SUITE = "mt-bench"
HUB = HubData("HuggingFaceH4/mt_bench_prompts")
TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's; other categories are answered at 0.7, as there."""
WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories that are judged with a reference answer."""
_SIDES: tuple[Side, ...] = ("base", "aligned")
_TOKENS = 1024
"""Of an answer, as FastChat has it."""
_REPLY_TOKENS = 2048

_QUESTION_FILES = (
    "question.jsonl",
    "mt_bench_question.jsonl",
    "mt_bench/question.jsonl",
    "data/mt_bench/question.jsonl",
)
_REFERENCE_FILES = (
    "reference_answer/gpt-4.jsonl",
    "mt_bench_reference_answer_gpt4.jsonl",
    "mt_bench/reference_answer/gpt-4.jsonl",
    "data/mt_bench/reference_answer/gpt-4.jsonl",
)
_PROMPT_FILES = (
    "judge_prompts.jsonl",
    "mt_bench_judge_prompts.jsonl",
    "../judge_prompts.jsonl",
    "data/judge_prompts.jsonl",
)


class Question(NamedTuple):
    """One question, and its reference answers where its category has them."""

    id: str
    category: str
    turns: tuple[str, str]
    reference: Reference | None


class Grade(NamedTuple):
    """Both models' ratings of one turn; None for one that could not be read."""

    question: int
    turn: Turn
    base: float | None
    aligned: float | None


def run(contest: Contest, *, data: str | Path | None, limit: int | None, folder: Path) -> SuiteResult:
    """Two turns with both models, graded and compared."""
    need_asker(contest, SUITE)
    rows, references, templates = _read(data)
    rows, part = look_at_some(rows, limit)
    questions = [_question(row, index, references, data) for index, row in enumerate(rows)]
    said = {side: _answers(contest, side, questions, folder / "answers.jsonl") for side in _SIDES}
    base, aligned = said["base"], said["aligned"]
    write_results(folder / "generations.jsonl", map(_generation, questions, base, aligned))
    single = _ask(
        contest, questions, ((base,), (aligned,)), templates, read=prompts.read_rating, kind="mt-bench-single-1"
    )
    grades = [Grade(*place, *ratings) for place, *ratings in single]
    orders = ((base, aligned), (aligned, base))
    pairs = _ask(contest, questions, orders, templates, read=prompts.read_winner, kind="mt-bench-pair-1")
    outcomes = [_outcome(*winners) for _, *winners in pairs]
    write_results(folder / "verdicts.jsonl", _verdicts(questions, grades, outcomes))
    unread = sum(grade.base is None or grade.aligned is None for grade in grades)
    lost = sum(outcome is None for outcome in outcomes)
    return SuiteResult(
        SUITE,
        comparisons=_comparisons(grades, outcomes, contest.confidence),
        breakdown=_by_category(questions, grades, contest.confidence),
        notes=[
            *_notes(questions, unread, lost, len(grades), templates is not None),
            *cut_off({side: [a.finished for both in said[side] for a in both] for side in _SIDES}, usual=_TOKENS),
        ],
        part=part,
        details={
            "scores": {side: _scores(questions, grades, side) for side in ("base", "aligned")},
            "pairwise": _counts(outcomes),
            "judge": need_asker(contest, SUITE).name,
            "judge_prompts": "FastChat's" if templates is not None else "preftune's",
            "temperatures": dict(TEMPERATURES),
            "unread_ratings": unread,
            "unread_comparisons": lost,
        },
    )


def _read(data: str | Path | None) -> tuple[list[Row], dict[str, Reference], Templates | None]:
    """Questions, references by question id, and FastChat's judge prompts where they are there."""
    if data is None or not Path(data).expanduser().is_dir():
        return read_rows(data, HUB, suite=SUITE), {}, None
    folder = Path(data).expanduser()
    question_file = _first(folder, _QUESTION_FILES)
    if question_file is None:
        raise DatasetError(
            f"{folder} holds no MT-Bench questions (looked for {', '.join(_QUESTION_FILES)}). Give FastChat's folder "
            "data/mt_bench, or the file of questions."
        )
    references: dict[str, Reference] = {}
    reference_file, prompt_file = _first(folder, _REFERENCE_FILES), _first(folder, _PROMPT_FILES)
    if reference_file is not None:
        for index, row in enumerate(read_rows(reference_file, HUB, suite=SUITE)):
            try:
                first, second = row["choices"][0]["turns"]
                references[str(row["question_id"])] = Reference(first, second)
            except (KeyError, IndexError, TypeError, ValueError):
                raise missing_column(
                    row, ("question_id", "choices"), suite=SUITE, index=index, where=reference_file
                ) from None
    templates = None
    if prompt_file is not None:
        templates = prompts.templates_of(read_rows(prompt_file, HUB, suite=SUITE))
        missing = [name for name in prompts.NAMES if name not in templates]
        if missing:
            raise DatasetError(
                f"{prompt_file} lacks the judge prompts {', '.join(missing)}. Use FastChat's file unchanged, or leave "
                "it out of the folder: preftune's own prompts are then used."
            )
    return read_rows(question_file, HUB, suite=SUITE), references, templates


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _question(row: Row, index: int, references: Mapping[str, Reference], where: object) -> Question:
    turns = row.get("turns") or row.get("prompt")
    if isinstance(turns, str) or not isinstance(turns, Sequence) or len(turns) != 2 or not all(map(_is_text, turns)):
        raise missing_column(row, ("turns", "prompt"), suite=SUITE, index=index, where=where)
    name = str(row.get("question_id", row.get("prompt_id", index)))
    category = str(row.get("category") or "general")
    own = row.get("reference")
    reference = references.get(name)
    if reference is None and isinstance(own, Sequence) and len(own) == 2 and all(map(_is_text, own)):
        reference = Reference(own[0], own[1])
    # FastChat shows references for these categories only, whatever else its file holds
    return Question(name, category, (turns[0], turns[1]), reference if category in WITH_REFERENCE else None)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _answers(contest: Contest, side: Side, questions: Sequence[Question], path: Path) -> list[tuple[Kept, Kept]]:
    """Both turns of one model; the second follows its own first answer."""
    rows = [{"id": q.id, "sampling": {"temperature": TEMPERATURES.get(q.category, 0.7)}} for q in questions]
    asked: list[Text] = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    first = answer_side(contest, side, asked, rows, path=path)
    said = [split_thoughts(answer.text).answer for answer in first]  # a thought is no part of a conversation
    again: list[Text] = [
        [*turn, {"role": "assistant", "content": answer}, {"role": "user", "content": question.turns[1]}]
        for turn, answer, question in zip(asked, said, questions, strict=True)
        if isinstance(turn, list)
    ]
    return list(zip(first, answer_side(contest, side, again, rows, path=path), strict=True))


def _texts(said: tuple[Kept, Kept], turn: Turn) -> list[str]:
    return [answer.text for answer in said[:turn]]


def _ask(
    contest: Contest,
    questions: Sequence[Question],
    orders: Sequence[Sequence[Said]],
    templates: Templates | None,
    *,
    read: Callable[[str], T | None],
    kind: str,
) -> list[tuple[tuple[int, Turn], T | None, T | None]]:
    """What the judge says of every question and turn, shown in two ways."""
    places = [(index, turn) for index in range(len(questions)) for turn in prompts.TURNS]
    asked = [
        prompts.judge_question(
            questions[index].turns,
            [_texts(said[index], turn) for said in shown],
            turn,
            reference=questions[index].reference,
            templates=templates,
        )
        for index, turn in places
        for shown in orders
    ]
    found = ask(contest, asked, read=read, kind=kind, max_tokens=_REPLY_TOKENS, suite=SUITE)
    return list(zip(places, found[::2], found[1::2], strict=True))


def _outcome(base_first: str | None, aligned_first: str | None) -> float | None:
    """Of the aligned model: 1, 0.5 or 0; None where an order could not be read."""
    if base_first is None or aligned_first is None:
        return None
    return {("b", "a"): 1.0, ("a", "b"): 0.0}.get((base_first, aligned_first), 0.5)


def _mean_rating(name: str, grades: Sequence[Grade], confidence: float) -> Comparison | None:
    both = [(g.question, g.base, g.aligned) for g in grades if g.base is not None and g.aligned is not None]
    if not both:
        return None
    questions, base, aligned = zip(*both, strict=True)
    return compare_means(name, base, aligned, questions, better="higher", unit="points", confidence=confidence)


def _comparisons(grades: Sequence[Grade], outcomes: Sequence[float | None], confidence: float) -> list[Comparison]:
    found = [
        _mean_rating("rating of 1 to 10", grades, confidence),
        *(
            _mean_rating(f"rating, turn {turn}", [g for g in grades if g.turn == turn], confidence)
            for turn in prompts.TURNS
        ),
    ]
    judged = [(grade.question, outcome) for grade, outcome in zip(grades, outcomes, strict=True) if outcome is not None]
    if judged:
        clusters, values = zip(*judged, strict=True)
        rate = win_rate(values, clusters, confidence=confidence)
        found.append(compare_win_rate("win rate", rate))
    comparisons = [one for one in found if one is not None]
    if not comparisons:
        raise DatasetError(
            "None of the judge's replies to MT-Bench could be read: neither a rating between double brackets nor a "
            "winner. Choose a stronger judge with --judge."
        )
    return comparisons


def _by_category(questions: Sequence[Question], grades: Sequence[Grade], confidence: float) -> list[Comparison]:
    readable = [grade for grade in grades if grade.base is not None and grade.aligned is not None]
    groups = members_by([questions[grade.question].category for grade in readable])

    def compare(name: str, members: Sequence[int], each: float) -> Comparison:
        found = _mean_rating(f"rating, {name}", [readable[i] for i in members], each)
        assert found is not None
        return found

    return by_group(groups, compare, confidence)


def _scores(questions: Sequence[Question], grades: Sequence[Grade], side: str) -> dict[str, Any]:
    """One model's means, as FastChat computes them: over whatever of its own could be read."""

    def mean(chosen: Sequence[Grade]) -> float | None:
        values = [value for grade in chosen if (value := getattr(grade, side)) is not None]
        return sum(values) / len(values) if values else None

    categories = dict.fromkeys(question.category for question in questions)
    return {
        "average": mean(grades),
        "turn_1": mean([grade for grade in grades if grade.turn == 1]),
        "turn_2": mean([grade for grade in grades if grade.turn == 2]),
        "categories": {
            name: mean([grade for grade in grades if questions[grade.question].category == name]) for name in categories
        },
    }


def _counts(outcomes: Sequence[float | None]) -> dict[str, int]:
    return {
        "wins": outcomes.count(1.0),
        "ties": outcomes.count(0.5),
        "losses": outcomes.count(0.0),
        "unread": outcomes.count(None),
    }


def _notes(questions: Sequence[Question], unread: int, lost: int, n: int, fastchats: bool) -> list[str]:
    notes = []
    if not fastchats:
        notes.append(
            "The judge was asked with preftune's prompts; for figures comparable with FastChat's, give its folder "
            "with judge_prompts.jsonl as --suite_data."
        )
    bare = sum(q.category in WITH_REFERENCE and q.reference is None for q in questions)
    if bare:
        notes.append(
            f"{counted(bare, 'question')} of math, reasoning or coding had no reference answer for the judge to "
            "compare with."
        )
    if unread or lost:
        notes.append(
            f"Of {counted(n, 'turn')}, {unread} had an unreadable rating and {lost} an unreadable comparison; they are "
            "left out."
        )
    return notes


def _generation(question: Question, base: tuple[Kept, Kept], aligned: tuple[Kept, Kept]) -> dict[str, Any]:
    return {
        "id": question.id,
        "category": question.category,
        "turns": list(question.turns),
        "base": _texts(base, 2),
        "aligned": _texts(aligned, 2),
        "tokens": {"base": [a.tokens for a in base], "aligned": [a.tokens for a in aligned]},
        "finished": {"base": [a.finished for a in base], "aligned": [a.finished for a in aligned]},
        "temperature": TEMPERATURES.get(question.category, 0.7),
    }


def _verdicts(
    questions: Sequence[Question], grades: Sequence[Grade], outcomes: Sequence[float | None]
) -> list[dict[str, Any]]:
    return [
        {
            "id": questions[grade.question].id,
            "turn": grade.turn,
            "rating": {"base": grade.base, "aligned": grade.aligned},
            "outcome": None if outcome is None else {1.0: "win", 0.5: "tie", 0.0: "loss"}[outcome],
        }
        for grade, outcome in zip(grades, outcomes, strict=True)
    ]
