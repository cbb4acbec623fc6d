"""RewardBench 1 and 2: how often the better answer has the higher reward, by section, for reward models and for
language models by their implicit reward.

The implicit reward of an answer is the aligned model's log-probability minus the baseline's (Rafailov et al. 2023,
arXiv:2305.18290; up to the factor beta and a term of the prompt, which change no order), or without a reference the
log-probability alone; both are also measured per token, since a sum over tokens depends on the length. A reward model
is compared with another one, or with equal rewards for all answers. Which version it is shows in the rows: RewardBench
1 has one answer of each kind, RewardBench 2 has lists of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.evaluation.suites.asking import need_models
from preftune.evaluation.suites.result import Part, SuiteResult
from preftune.evaluation.suites.reward_bench_scores import FIRST, Question, Rewards, Scored, score
from preftune.evaluation.suites.sources import HubData, Row, look_at_some, missing_column, read_rows
from preftune.evaluation.two_models.pair_logps import Floats, score_both
from preftune.generation.protocol import SIDES
from preftune.generation.thoughts import split_thoughts
from preftune.progress import Counting
from preftune.storage.jsonl import write_lines
from preftune.types import PreferencePair, Text

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest
    from preftune.judges.protocol import Item
    from preftune.judges.reward_model import RewardModel

SUITE = "reward-bench"
HUBS: Mapping[str, HubData] = {
    "allenai/reward-bench": HubData("allenai/reward-bench", split="filtered"),
    "allenai/reward-bench-2": HubData("allenai/reward-bench-2", split="test"),
}

AnswerRewards = list[Floats | None]
"""Of each question: rewards of its A answers, None if one of them could not be scored."""
BothRewards = tuple[AnswerRewards | None, AnswerRewards]
"""Of the baseline, None if it is equal rewards for all answers, and of the aligned model."""


def run(contest: Contest, *, data: str | Path | None, limit: int | None, folder: Path) -> SuiteResult:
    """The scores of both models by every kind of reward."""
    questions, part = _questions(data, limit)
    kinds = _by_scorers(contest, questions) if contest.scorers else _by_logps(contest, questions, folder)
    measured = [side for sides in kinds.values() for side in sides if side is not None]
    known = [i for i in range(len(questions)) if all(side[i] is not None for side in measured)]
    known = _with_both_ties(questions, known)
    if not known:
        raise DatasetError(
            f"None of the questions of the suite {SUITE} fits into the model's positions. Give other data with "
            "--suite_data."
        )
    kept = [questions[i] for i in known]
    found: dict[str, Scored] = {}
    for name, sides in kinds.items():
        base, aligned = (None if side is None else _of_known(side, known) for side in sides)
        assert aligned is not None
        found[name] = score(f"score by {name}", kept, Rewards(base, aligned), confidence=contest.confidence)
    write_lines(folder / "rewards.jsonl", _records(questions, known, kinds))
    headline = next(iter(found.values()))
    return SuiteResult(
        SUITE,
        comparisons=[scored.score for scored in found.values()],
        breakdown=headline.sections,
        notes=_notes(contest, kept, len(questions) - len(known)),
        part=part,
        details={
            "left_out": len(questions) - len(known),
            "sections": {name: [_with_verdict(one) for one in scored.sections] for name, scored in found.items()},
            "subsets": {name: [_with_verdict(one) for one in scored.subsets] for name, scored in found.items()},
        },
    )


def _of_known(side: AnswerRewards, known: Sequence[int]) -> list[Floats]:
    return [reward for i in known if (reward := side[i]) is not None]


def _with_verdict(one: Any) -> dict[str, Any]:
    return {**asdict(one), "verdict": one.verdict}


# --- questions ---


def _questions(data: str | Path | None, limit: int | None) -> tuple[list[Question], Part | None]:
    """All questions, or some of them evenly spread. Both questions of a number of Ties are one."""
    hub = HUBS.get("allenai/reward-bench" if data is None else str(data))
    rows = read_rows(data, HubData(""), suite=SUITE) if hub is None else read_rows(None, hub, suite=SUITE)
    questions = [_question(row, index, data) for index, row in enumerate(rows)]
    if not questions:
        raise DatasetError(f"{data} holds no question for the suite {SUITE}. Give rows of RewardBench.")
    units: dict[str, list[Question]] = {}
    for index, question in enumerate(questions):
        unit = f"ties {question.pair_of_ties}" if question.is_tie else str(index)
        units.setdefault(unit, []).append(question)
    some, part = look_at_some([{"unit": unit} for unit in units], limit)
    return [question for one in some for question in units[one["unit"]]], part


def _question(row: Row, index: int, where: object) -> Question:
    """Raises: DatasetError for a row that is none of RewardBench's."""
    prompt, subset = row.get("prompt"), row.get("subset") or row.get("section")
    for names, value in ((("prompt",), prompt), (("subset",), subset)):
        if not value or not isinstance(value, str | list):
            raise missing_column(row, names, suite=SUITE, index=index, where=where)
    right, wrong = _answers(row.get("chosen")), _answers(row.get("rejected"))
    for names, answers in ((("chosen",), right), (("rejected",), wrong)):
        if not answers:
            raise missing_column(row, names, suite=SUITE, index=index, where=where)
    question = Question(str(row.get("id", index)), _turns(prompt), [*right, *wrong], len(right), str(subset))
    if question.is_tie and question.id.partition(":")[0] not in ("ref", "tied"):
        raise DatasetError(
            f"Row {index} of {where or 'the data'} belongs to the subset Ties, and its id {question.id!r} is not "
            "'ref:NUMBER' or 'tied:NUMBER'. Give RewardBench 2's own rows, or another subset."
        )
    return question


def _turns(prompt: Any) -> Text:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def _answers(value: Any) -> list[str]:
    """The texts of one kind of answer: one, several, or the last turn of a conversation."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or not value:
        return []
    if all(isinstance(one, str) for one in value):
        return list(value)
    last = value[-1]
    content = last.get("content") if isinstance(last, Mapping) else None
    return [content] if isinstance(content, str) else []


def _with_both_ties(questions: Sequence[Question], known: Sequence[int]) -> list[int]:
    """Without questions of Ties whose counterpart could not be scored."""
    kept = frozenset(known)
    lost = {q.pair_of_ties for i, q in enumerate(questions) if q.is_tie and i not in kept}
    return [i for i in known if not (questions[i].is_tie and questions[i].pair_of_ties in lost)]


# --- rewards ---


def _by_scorers(contest: Contest, questions: Sequence[Question]) -> dict[str, BothRewards]:
    """Of reward models; without a second one, the baseline rates all answers alike."""
    base = contest.scorers.get("base")
    rated = None if base is None else _rated(base, questions, "base")
    return {"reward": (rated, _rated(contest.scorers["aligned"], questions, "aligned"))}


def _rated(scorer: RewardModel, questions: Sequence[Question], side: str) -> AnswerRewards:
    """Of the answers alone, without the reasoning before them."""
    items: list[list[Item]] = [
        [(one.prompt, split_thoughts(answer).answer, {}) for answer in one.answers] for one in questions
    ]
    with Counting(f"{SUITE}: rating, {side}", unit="answers") as progress:
        every = [item for of_question in items for item in of_question]
        scores = iter(scorer.score_all(every, progress=progress, leave_out_long=True))
    found: AnswerRewards = []
    for of_question in items:
        rewards = [next(scores) for _ in of_question]
        found.append(None if None in rewards else np.array(rewards, dtype=np.float64))
    return found


def _by_logps(contest: Contest, questions: Sequence[Question], folder: Path) -> dict[str, BothRewards]:
    """Implicit rewards with and without a reference, summed and per token."""
    pairs = [pair for question in questions for pair in _pairs(question)]
    models = need_models(contest, SUITE)
    with Counting(f"{SUITE}: scoring", unit="answers") as progress:
        both = score_both(models, pairs, settings=contest.settings, path=folder / "scores.jsonl", progress=progress)
    base, aligned = (_of_answers(questions, np.stack([scores.chosen_N, scores.rejected_N], 1)) for scores in both)
    tokens = [_of_answers(questions, np.stack([one.chosen_tokens_N, one.rejected_tokens_N], 1)) for one in both]
    base_each, aligned_each = (
        [None if s is None or n is None else s / n for s, n in zip(sums, lengths, strict=True)]
        for sums, lengths in zip((base, aligned), tokens, strict=True)
    )
    return {
        "implicit reward": (None, _minus(aligned, base)),
        "implicit reward per token": (None, _minus(aligned_each, base_each)),
        "log-probability": (base, aligned),
        "log-probability per token": (base_each, aligned_each),
    }


def _minus(aligned: AnswerRewards, base: AnswerRewards) -> AnswerRewards:
    return [None if a is None or b is None else a - b for a, b in zip(aligned, base, strict=True)]


def _pairs(question: Question) -> list[PreferencePair]:
    """The answers two by two, which the engine scores after one reading of the prompt; the first one again where one
    would be left alone.
    """
    answers = [*question.answers, *question.answers[: len(question.answers) % 2]]
    sides = [[{"role": "assistant", "content": answer}] for answer in answers]
    return [PreferencePair(question.prompt, *two) for two in zip(sides[::2], sides[1::2], strict=True)]


def _of_answers(questions: Sequence[Question], column_P2: Floats) -> AnswerRewards:
    """A column of pairs as one of questions."""
    found: AnswerRewards = []
    start = 0
    for question in questions:
        end = start + (len(question.answers) + 1) // 2
        values = column_P2[start:end].reshape(-1)[: len(question.answers)]
        found.append(None if bool(np.isnan(values).any()) else values)
        start = end
    return found


# --- what is written ---


def _records(
    questions: Sequence[Question], known: Sequence[int], kinds: Mapping[str, BothRewards]
) -> list[dict[str, Any]]:
    """A baseline that was not measured has no rewards."""
    return [
        {
            "id": questions[i].id,
            "subset": questions[i].subset,
            "correct": questions[i].correct,
            "rewards": {
                name: {
                    side: rewards[i].tolist()  # type: ignore[union-attr]
                    for side, rewards in zip(SIDES, sides, strict=True)
                    if rewards is not None
                }
                for name, sides in kinds.items()
            },
        }
        for i in known
    ]


def _notes(contest: Contest, questions: Sequence[Question], left_out: int) -> list[str]:
    notes = []
    if contest.scorers and contest.scorers.get("base") is None:
        notes.append("The baseline of a reward model without --baseline is equal rewards for all answers.")
    elif not contest.scorers:
        notes.append(
            "The baseline's implicit reward is 0 for every answer. A correct answer that shares the highest reward "
            "with others counts as its share of them."
        )
    sections = {question.section for question in questions}
    missing = [section for section in FIRST if section not in sections]
    if missing and len(missing) < len(FIRST):
        notes.append(f"There are no rows of {', '.join(missing)}: the score is the mean of the other sections.")
    if left_out:
        notes.append(
            f"{counted(left_out, 'question does', 'questions do')} not fit into the model's positions, or cannot be "
            "tokenised, and will be left out; RewardBench truncates them."
        )
    return notes
