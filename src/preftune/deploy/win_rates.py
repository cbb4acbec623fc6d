"""Win rates against the base, of the trained model and of what is served, by their greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.amounts import counted
from preftune.deploy.served import Served, ServedModel
from preftune.deploy.trained import Trained
from preftune.evaluation.two_models.run import judge_rows
from preftune.evaluation.two_models.types import AnsweredRow, JudgedRow
from preftune.generation.protocol import Kept
from preftune.generation.thoughts import begins_inside, split_thoughts
from preftune.judges.protocol import Judge, Scorer, judge_name
from preftune.judges.registry import as_judge
from preftune.statistics.intervals import WinRate, win_rate
from preftune.statistics.paired import Comparison, compare_shares
from preftune.storage.jsonl import digest


@dataclass(frozen=True, slots=True)
class Judging:
    """A judge, and how it is asked."""

    judge: Judge | Scorer
    """Compares two answers, or scores one."""
    again: bool = False
    """Ask once more where an earlier run gave no readable verdict."""
    thoughts: bool = False
    """Judge what thinking models write before their answers as part of the answers."""

    def check(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises: DatasetError for rows without what the judge reads."""
        if (needs := getattr(self.judge, "needs", None)) is not None:
            for row in rows or [{}]:
                needs(row)


@dataclass(frozen=True, slots=True)
class WinRates:
    """Win rates against the base on the same prompts."""

    judge: str
    trained: WinRate
    served: WinRate
    change: Comparison
    """Of the served model (`aligned`) to the trained one (`base`), paired by prompt."""

    def line(self) -> str:
        """The figures for a terminal."""
        one = self.served
        interval = f"{one.confidence:.0%} interval {one.ci_low:.0%} to {one.ci_high:.0%}"
        return (
            f"{one.win_rate:.0%} against the base ({interval}), trained model {self.trained.win_rate:.0%}; "
            f"{counted(one.prompts, 'prompt')}, judge {self.judge}"
        )

    def lost(self) -> str:
        """A sentence if the trained model wins against its base, and the served one neither does nor comes near it."""
        if self.trained.ci_low <= 0.5 or self.served.ci_low > 0.5 or self.change.verdict != "worse":
            return ""
        return (
            f"the trained model wins {self.trained.win_rate:.0%} against its base, and the served one "
            f"{self.served.win_rate:.0%} ({100 * self.change.difference:+.0f} points, {self.change.interval_words()})."
        )


def win_rates(trained: Trained, served: Served, answers: Sequence[Kept], judging: Judging) -> WinRates:
    """Judges the answers of both models against those of the base.

    Args:
        answers: the served model's, in the order of the questions.
    """
    judge = as_judge(judging.judge)
    own, questions = trained.answers, trained.questions
    rows = questions.rows or [{}] * len(questions.prompts)
    inside = [begins_inside(str(trained.run.tokenizer.decode(ids[-24:]))) for ids in trained.prompt_ids]
    away = inside if isinstance(served, ServedModel) else [False] * len(inside)  # a server separates them itself

    def spoken(texts: Sequence[Kept], begins: Sequence[bool]) -> list[str]:
        if judging.thoughts:
            return [one.text for one in texts]
        return [split_thoughts(one.text, inside=at).answer for one, at in zip(texts, begins, strict=True)]

    base = spoken(own.base, inside)

    def judged(texts: list[str]) -> list[JudgedRow]:
        answered = [
            AnsweredRow(str(n), prompt, base[n], texts[n], 0, 0, True, True)
            for n, prompt in enumerate(questions.prompts)
        ]
        return judge_rows(answered, rows, judge=judge, again=judging.again)

    clusters = [digest(prompt) for prompt in questions.prompts]
    sides = judged(spoken(own.run, inside)), judged(spoken(answers, away))
    mine, theirs = ([one.value for one in side] for side in sides)
    rate, other = (
        win_rate([one.value for one in side], clusters, unread=[one.unjudged for one in side]) for side in sides
    )
    change = compare_shares("win rate", mine, theirs, clusters, better="higher")
    return WinRates(judge_name(judge), rate, other, change)
