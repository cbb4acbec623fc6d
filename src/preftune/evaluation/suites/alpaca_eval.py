"""AlpacaEval (Dubois et al. 2024, arXiv:2404.04475): 805 instructions, the win rate plain and at equal length.

The baseline of the contest is the opponent. Where the data that were named carry outputs (AlpacaEval's own reference
outputs), both models are judged against these too, and compared by how often each of them wins. The files are those of
the package alpaca_eval, so that its annotators can judge the same answers:

    model_outputs.json, baseline_outputs.json    instruction, output, generator, dataset, datasplit
    annotations.json                             both outputs, their generators, preference 1 (baseline) to 2 (aligned)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.evaluation.suites.asking import answer_both, cut_off, ended, need_judge
from preftune.evaluation.suites.result import SuiteResult
from preftune.evaluation.suites.sources import HubData, Row, look_at_some, read_rows, text_of
from preftune.evaluation.two_models.run import judge_rows
from preftune.evaluation.two_models.summary import at_equal_length, rate_of
from preftune.evaluation.two_models.types import AnsweredRow, JudgedRow
from preftune.judges.pairwise_llm import CRITERIA, ChatJudge
from preftune.judges.probability_judge import ProbabilityJudge
from preftune.judges.protocol import Judge, Question, judge_name
from preftune.statistics.paired import (
    Comparison,
    by_group,
    compare_shares,
    compare_win_rate,
    compare_with_even,
    members_by,
)
from preftune.storage.jsonl import digest, write_atomically

if TYPE_CHECKING:
    from preftune.evaluation.two_models.context import Contest
    from preftune.statistics.length_control import LengthControlled

SUITE = "alpaca-eval"
HUB = HubData("tatsu-lab/alpaca_eval", "alpaca_eval.json")
"""The instructions alone are used; the outputs in this file are those of version 1."""
REFERENCES = HubData("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline.json")
"""For `--suite_data tatsu-lab/alpaca_eval`: the same instructions with version 2's reference outputs."""
_TOKENS = 2048
"""Of an answer, as most models of the leaderboard were given."""
_FOR_LENGTHS = 10
"""Comparisons below which no length-controlled rate is fitted."""


def run(contest: Contest, *, data: str | Path | None, limit: int | None, folder: Path) -> SuiteResult:
    """Both models answer, the judge compares in both orders; rates plain and at equal length."""
    need_judge(contest, SUITE)
    rows, part = look_at_some(_read(data), limit)
    answered = answer_both(contest, rows, folder)
    judge, graded = _weighted(contest, answered)
    judged = judge_rows(answered, rows, judge=judge, path=folder / "verdicts.jsonl", progress=contest.progress)
    _write_outputs(folder, contest, rows, answered, judged, judge_name(judge))
    clusters = [digest(answer.prompt) for answer in answered]
    rate = rate_of(judged, clusters, confidence=contest.confidence)
    controlled = at_equal_length(answered, judged, clusters, contest.confidence, contest.seed, least=_FOR_LENGTHS)
    comparisons = [compare_win_rate("win rate", rate)]
    if controlled is not None and controlled.win_rate is not None:
        rates = controlled.win_rate, controlled.ci_low, controlled.ci_high
        n = len(judged) - rate.unread
        fair = compare_with_even("win rate at equal length", *rates, n=n, confidence=contest.confidence)
        comparisons.insert(0, fair)
    against = _against_references(contest, rows, answered, folder, judge)
    comparisons += against
    return SuiteResult(
        SUITE,
        comparisons=comparisons,
        breakdown=_by_dataset(rows, judged, clusters, contest.confidence),
        notes=[*graded, *_notes(controlled, judged, bool(against)), *cut_off(ended(answered), usual=_TOKENS)],
        part=part,
        details={
            "win_rate": rate.to_dict(),
            "length_controlled": None if controlled is None else controlled.to_dict(),
            "letters": {
                "base": sum(len(answer.base) for answer in answered) / len(answered),
                "aligned": sum(len(answer.aligned) for answer in answered) / len(answered),
            },
            "judge": judge_name(judge),
        },
    )


def _weighted(contest: Contest, answered: Sequence[AnsweredRow]) -> tuple[Judge, list[str]]:
    """The judge by log-probabilities, as in AlpacaEval 2, where the model gives them; and a note on which it is."""
    judge = need_judge(contest, SUITE)
    question = next((Question(a.prompt, a.base, a.aligned) for a in answered if a.base != a.aligned), None)
    if contest.asker is None or question is None:
        return judge, []
    criteria = judge.criteria if isinstance(judge, ChatJudge) else CRITERIA
    weighted = ProbabilityJudge(contest.asker, criteria=criteria)
    if weighted.gives_probabilities(question):
        return weighted, ["Outcomes are the judge's probabilities, from the log-probabilities of its two letters."]
    return judge, [
        f"{contest.asker.name} returned no log-probabilities of its two letters, so each comparison is won, tied or "
        "lost; AlpacaEval 2 weights them by probability."
    ]


def _read(data: str | Path | None) -> list[Row]:
    named = None if data is None else os.fspath(data)
    if named in (None, HUB.repo):
        raw = read_rows(None, HUB if named is None else REFERENCES, suite=SUITE)
        if named is None:
            raw = [{key: value for key, value in row.items() if key != "output"} for row in raw]
    else:
        raw = read_rows(data, HUB, suite=SUITE)
    rows = []
    for index, row in enumerate(raw):
        instruction = text_of(row, ("instruction", "prompt"), suite=SUITE, index=index, where=data)
        more = row.get("input")
        asked = f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction
        rows.append(
            {
                "id": str(index if row.get("id") is None else row["id"]),
                "prompt": [{"role": "user", "content": asked}],
                "instruction": asked,
                "dataset": row.get("dataset"),
                "reference": row.get("output"),
                "generator": row.get("generator"),
                "category": row.get("dataset"),
            }
        )
    return rows


def _by_dataset(
    rows: Sequence[Row], judged: Sequence[JudgedRow], clusters: Sequence[str], confidence: float
) -> list[Comparison]:
    groups = members_by([None if row["dataset"] is None else str(row["dataset"]) for row in rows])
    if len(groups) < 2:
        return []

    def compare(name: str, members: Sequence[int], each: float) -> Comparison:
        return compare_win_rate(f"win rate, {name}", rate_of(judged, clusters, members, confidence=each))

    return by_group(groups, compare, confidence)


def _against_references(
    contest: Contest, rows: Sequence[Row], answered: Sequence[AnsweredRow], folder: Path, judge: Judge
) -> list[Comparison]:
    """How often each model wins against the outputs that came with the data; nothing where none came."""
    at = [i for i, row in enumerate(rows) if isinstance(row["reference"], str) and row["reference"].strip()]
    if not at:
        return []
    by_side: dict[str, list[JudgedRow]] = {}
    for side in ("base", "aligned"):
        pairs = [_beside(answered[i], rows[i], side) for i in at]
        by_side[side] = judge_rows(
            pairs,
            [rows[i] for i in at],
            judge=judge,
            path=folder / f"reference_verdicts_{side}.jsonl",
            progress=contest.progress,
        )
    read = [n for n in range(len(at)) if not any(judged[n].unjudged for judged in by_side.values())]
    if not read:
        return []
    wins = {side: [judged[n].value for n in read] for side, judged in by_side.items()}
    names = {str(rows[i]["generator"]) for i in at if rows[i]["generator"]}
    opponent = names.pop() if len(names) == 1 else "the reference outputs"
    return [
        compare_shares(
            f"win rate against {opponent}",
            wins["base"],
            wins["aligned"],
            [digest(answered[at[n]].prompt) for n in read],
            better="higher",
            confidence=contest.confidence,
        )
    ]


def _beside(answer: AnsweredRow, row: Row, side: str) -> AnsweredRow:
    """The reference output in the place of the baseline, one of the models in that of the aligned one."""
    if side == "base":
        ended = answer.base_finished
        answer = replace(answer, aligned=answer.base, aligned_tokens=answer.base_tokens, aligned_finished=ended)
    return replace(answer, base=row["reference"], base_tokens=0, base_finished=True)


def _write_outputs(
    folder: Path,
    contest: Contest,
    rows: Sequence[Row],
    answered: Sequence[AnsweredRow],
    judged: Sequence[JudgedRow],
    annotator: str,
) -> None:
    def outputs(side: str, generator: str) -> list[dict[str, Any]]:
        return [
            {**_place(row), "output": getattr(answer, side), "generator": generator}
            for row, answer in zip(rows, answered, strict=True)
        ]

    annotations = [
        {
            **_place(row),
            "output_1": answer.base,
            "generator_1": contest.baseline,
            "output_2": answer.aligned,
            "generator_2": contest.aligned,
            "annotator": annotator,
            "preference": 1.0 + one.value,
        }
        for row, answer, one in zip(rows, answered, judged, strict=True)
    ]
    _write_list(folder / "model_outputs.json", outputs("aligned", contest.aligned))
    _write_list(folder / "baseline_outputs.json", outputs("base", contest.baseline))
    _write_list(folder / "annotations.json", annotations)


def _place(row: Row) -> dict[str, Any]:
    return {"instruction": row["instruction"], "dataset": row["dataset"] or "unknown", "datasplit": "eval"}


def _write_list(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    import json

    write_atomically(path, json.dumps(list(records), indent=2, ensure_ascii=False) + "\n")


def _notes(controlled: LengthControlled | None, judged: Sequence[JudgedRow], against: bool) -> list[str]:
    notes = []
    unjudged = sum(one.unjudged for one in judged)
    if unjudged:
        notes.append(
            f"{unjudged} of {counted(len(judged), 'comparison')} without a readable verdict count as ties; the "
            "interval of the win rate holds for any outcome of them."
        )
    if controlled is None:
        notes.append(
            f"{counted(len(judged) - unjudged, 'comparison')} with a verdict: too few for a win rate at equal length "
            f"(at least {_FOR_LENGTHS} prompts)."
        )
    elif controlled.extrapolated:
        notes.append(controlled.sentence())
    if not against:
        notes.append(
            "The opponent is the baseline. To compare with AlpacaEval's leaderboard, add its reference outputs: "
            "--suite_data tatsu-lab/alpaca_eval."
        )
    return notes
