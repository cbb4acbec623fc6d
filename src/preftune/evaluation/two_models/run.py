"""Base against aligned, prompt by prompt: generate, judge, count. Each step writes a file that a later run reuses.

eval/generations.jsonl   one object per row: id, prompt, base, aligned, ...; see `two_models.answers`
eval/verdicts.jsonl      one object per row: id, outcome (for the aligned model), the judgement in each order
eval/summary.json        the win rate, its interval, the verdicts in words
eval/history.jsonl       one object per evaluation: when, of what, against what, by which judge, and what came out
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preftune.evaluation.two_models.answers import Progress, answer_rows, write_results
from preftune.evaluation.two_models.summary import Summary, summarise
from preftune.evaluation.two_models.types import AnsweredRow, JudgedRow, outcome_word
from preftune.evaluation.two_models.verdict_record import write_summary
from preftune.generation.protocol import PairGenerator
from preftune.judges.protocol import (
    Graded,
    Judge,
    Question,
    Scorer,
    both_orders,
    is_graded,
    judge_all,
    share_of_a,
)
from preftune.judges.registry import as_judge
from preftune.statistics.confidence_sequence import anytime_interval
from preftune.storage.jsonl import append_lines, digest, prepare_folder, read_lines, report_damage


def evaluate_pairwise(
    rows: Sequence[Mapping[str, Any]],
    *,
    generate: PairGenerator,
    judge: Judge | Scorer,
    output_dir: str | Path,
    settings: Mapping[str, Any],
    chunk: int = 64,
    again: bool = False,
    judge_thoughts: bool = False,
    anytime: bool = False,
    cost: Callable[[], dict[str, Any] | None] = lambda: None,
    before_judging: Callable[[list[AnsweredRow]], None] | None = None,
    progress: Progress | None = None,
    **facts: Any,
) -> Summary:
    """Answer every row's `prompt` with both models, judge, and write the files named at the top.

    Run again, only what is missing is generated. `settings` decides what may be reused, so it must hold all that
    shapes an answer: an identity of both models (a fingerprint, not only a name), `max_new_tokens`, sampling.

    Args:
        rows: each has `prompt` (text or messages); `id`, `category` and what the judge reads (`key_fact`) are optional.
        judge: compares two answers, or scores one (the higher score wins); `row` may be left out of its arguments.
        output_dir: the `eval` folder itself.
        chunk: rows answered between two writes, by a generator that does not stream.
        again: ask the judge once more where no verdict could be read in an earlier run.
        judge_thoughts: judge and measure what thinking models write before their answers as part of the answers.
        anytime: also compute the interval that stays valid when prompts are added; the verdict then needs it.
        cost: what endpoints cost, asked for at the end.
        before_judging: called with all answers before the judge is asked.
        facts: `names`, `evaluated`, `seed`, `confidence`, `training`, `seen` and `abilities` of `summarise`.
    Raises: DatasetError for no row, or one without a prompt; RequestError for an unwritable folder.
    """
    judge, folder = as_judge(judge), Path(output_dir)
    prepare_folder(folder)
    path = folder / "generations.jsonl"
    answered = answer_rows(
        rows, generate=generate, path=path, settings=settings, chunk=chunk, thoughts=judge_thoughts, progress=progress
    )
    if before_judging is not None:
        before_judging(answered)
    judged = judge_rows(answered, rows, judge=judge, path=folder / "verdicts.jsonl", again=again, progress=progress)
    if anytime:
        facts["anytime"] = anytime_interval(
            [item.value for item in judged],
            [digest(answer.prompt) for answer in answered],
            confidence=facts.get("confidence", 0.95),
            unread=[item.unjudged for item in judged],
        )
    summary = summarise(answered, judged, rows, judge=judge, settings=settings, cost=cost(), **facts)
    write_summary(folder, summary.to_dict())
    return summary


def questions_of(
    answered: Sequence[AnsweredRow], rows: Sequence[Mapping[str, Any]], *, symmetric: bool
) -> list[Question]:
    """What a judge is asked: each row whose answers differ, base first, and in the other order too unless the judge is
    symmetric."""
    questions = []
    for answer, row in zip(answered, rows, strict=True):
        if answer.base != answer.aligned:
            question = Question(answer.prompt, answer.base, answer.aligned, row)
            questions += [question] if symmetric else [question, question.swapped]
    return questions


def judge_rows(
    answered: Sequence[AnsweredRow],
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: Judge,
    path: Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> list[JudgedRow]:
    """The outcome of every row. A judge that is not `symmetric` is asked in both orders, and disagreement is a tie.

    Identical answers count as a tie without calling the judge. A verdict that could not be read is a tie too, and
    counted.

    Args:
        path: where the outcomes are written when all are known; a judge with a `cache_key` finds its earlier ones
            there, and those of a run that was stopped in NAME.partial.jsonl.
        again: ask once more what could not be read in an earlier run.
    """
    symmetric = bool(getattr(judge, "symmetric", False))
    keys = _outcome_keys(answered, rows, judge)
    known: dict[str, dict[str, Any]] = {}
    if path is not None:
        partial = path.with_name(f"{path.stem}.partial.jsonl")
        for file in (path, partial):
            records = [record for record in read_lines(file) if record.get("key")]
            usable = [record for record in records if _is_outcome(record)]
            report_damage(file, len(records) - len(usable))
            known |= {record["key"]: record for record in usable if not (again and record.get("unjudged"))}
    open_rows = [
        number
        for number, (answer, key) in enumerate(zip(answered, keys, strict=True))
        if answer.base != answer.aligned and not (key and key in known)
    ]

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("judge", done, total)

    # A judge that takes all at once keeps its own verdicts; those of a rule with a `cache_key` are kept row by row.
    at_once = hasattr(judge, "judge_all")
    fresh: dict[int, JudgedRow] = {}
    for part in [open_rows] if at_once else [[number] for number in open_rows]:
        asked = questions_of([answered[n] for n in part], [rows[n] for n in part], symmetric=symmetric)
        verdicts = iter(judge_all(judge, asked, again=again, progress=report if at_once else None))
        for n in part:
            first, second = next(verdicts), None if symmetric else next(verdicts)
            fresh[n] = _judged(answered[n].id, first, second, keys[n], symmetric=symmetric)
        if not at_once:
            report(len(fresh), len(open_rows))
            if path is not None and keys[part[0]]:
                append_lines(partial, [fresh[n].to_dict() for n in part], sealed=True)
    judged = [
        fresh[number] if number in fresh else _without_asking(answer.id, key, known)
        for number, (answer, key) in enumerate(zip(answered, keys, strict=True))
    ]
    if path is not None:
        write_results(path, (item.to_dict() for item in judged))
        partial.unlink(missing_ok=True)
    return judged


def _outcome_keys(answered: Sequence[AnsweredRow], rows: Sequence[Mapping[str, Any]], judge: Judge) -> list[str]:
    """The address of each row's outcome; empty for a judge whose outcomes cannot be used again."""
    cache_key = getattr(judge, "cache_key", None)
    if cache_key is None:
        return [""] * len(answered)
    # A chat model sees only the answers; a rule may read the row (`key_fact`, a column of its own).
    reads_row = not hasattr(judge, "estimate")
    return [
        digest([cache_key, answer.prompt, answer.base, answer.aligned, *([dict(row)] if reads_row else [])])
        for answer, row in zip(answered, rows, strict=True)
    ]


def _without_asking(name: str, key: str, known: Mapping[str, Mapping[str, Any]]) -> JudgedRow:
    """An outcome that is known, or the tie of two equal answers."""
    if not key or key not in known:
        return JudgedRow(name, 0.5, "tie", None, key)
    return JudgedRow.from_dict({**known[key], "id": name})


def _judged(
    name: str, base_first: Graded | None, aligned_first: Graded | None, key: str, *, symmetric: bool
) -> JudgedRow:
    unread = base_first is None or (aligned_first is None and not symmetric)
    return JudgedRow(name, _value(base_first, aligned_first, unread), base_first, aligned_first, key, unread)


def _is_outcome(record: Mapping[str, Any]) -> bool:
    """Whether a line of verdicts.jsonl can be reused: it is whole, and its judgements lead to its outcome."""
    first, second = (record.get(name, "") for name in ("base_first", "aligned_first"))
    unread = record.get("unjudged")
    if not isinstance(record.get("key"), str) or not (unread is None or isinstance(unread, bool)):
        return False
    if not all(judgement is None or is_graded(judgement) for judgement in (first, second)):
        return False
    value = _value(first, second, bool(unread))
    given = record.get("value", value)
    return isinstance(given, float) and given == value and record.get("outcome") == outcome_word(value)


def _value(base_first: Graded | None, aligned_first: Graded | None, unread: bool) -> float:
    return 0.5 if base_first is None or unread else value_of(base_first, aligned_first)


def value_of(base_first: Graded, aligned_first: Graded | None) -> float:
    """The aligned model's share of the comparison, from the judgement in each order; see `both_orders`."""
    if aligned_first is None:
        return 1.0 - share_of_a(base_first)
    return both_orders(aligned_first, base_first)
