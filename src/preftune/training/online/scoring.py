"""What an answer is worth: a reward model, several as an ensemble, a rule, or a chat model that gives a mark."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from preftune.errors import RequestError
from preftune.generation.prompts import Prompt
from preftune.judges.ensemble import combined as one_score
from preftune.judges.ensemble import deviation
from preftune.judges.llm_client import Asker
from preftune.judges.pairwise_llm import as_transcript
from preftune.judges.prompt_and_reply import defused, unmarked
from preftune.judges.protocol import Item, Scorer, judge_name, score_all
from preftune.judges.registry import JudgeOptions, judge_kind, open_judge
from preftune.training.online.reward_rules import rule_reward
from preftune.training.online.rollout import Rollout
from preftune.types import Message, Text

_MARK = re.compile(r"-?\d+(?:\.\d+)?")
_OF_TEN = re.compile(r"(?<=\d)\s*(?:/|out of|of)\s*10(?:\.0+)?(?![\d.]*\d)", re.IGNORECASE)
_BEST = 10.0
_MARK_TOKENS = 16


class Scores(NamedTuple):
    """The scores of some answers; None for one that could not be scored."""

    scores: list[float | None]
    spread: list[float | None]
    """The standard deviation between the members of an ensemble; None without one."""


class Scorers:
    """Scorers that rate the same rollouts."""

    def __init__(self, scorers: Sequence[Scorer], *, thoughts: bool = False) -> None:
        """
        Args:
            thoughts: score a thinking model's thought as part of the answer.
        """
        self.scorers, self._thoughts = list(scorers), thoughts
        self.names = [judge_name(scorer) for scorer in scorers]
        self.name = " + ".join(self.names)
        self.keys = [getattr(scorer, "cache_key", None) for scorer in scorers]
        """Content addresses, of those that have one."""

    def items(self, rollouts: Sequence[Rollout]) -> list[Item]:
        """The rollouts as prompt, text and row."""
        return [(one.prompt.prompt, one.judged(thoughts=self._thoughts), row_of(one.prompt)) for one in rollouts]

    def members(self, items: Sequence[Item]) -> list[list[float | None]]:
        """Each scorer's scores."""
        return [score_all(scorer, items) for scorer in self.scorers]


class Score(Scorers):
    """Rates rollouts by one scorer or several."""

    def __init__(self, scorers: Sequence[Scorer], *, ensemble: str = "mean", thoughts: bool = False) -> None:
        """
        Args:
            ensemble: how several are one: their mean, the least of them (Coste et al. 2023, arXiv:2310.02743, "worst-
                case optimisation"), or the mean less their standard deviation (there "uncertainty-weighted").
        """
        super().__init__(scorers, thoughts=thoughts)
        self._ensemble = ensemble

    def __call__(self, rollouts: Sequence[Rollout]) -> Scores:
        return self.of_items(self.items(rollouts))

    def of_items(self, items: Sequence[Item]) -> Scores:
        """The scores of answers given as prompt, text and row."""
        return combined(self.members(items), self._ensemble)


def row_of(prompt: Prompt) -> dict[str, Any]:
    """What a rule reads besides prompt and answer: the other columns of the prompt's row."""
    return {**prompt.kept, **prompt.carried, "id": prompt.id, "prompt": prompt.prompt}


def combined(members: Sequence[Sequence[float | None]], ensemble: str) -> Scores:
    """One score for every answer from those of the members; an answer that one of them could not score has no score."""
    scores: list[float | None] = []
    spread: list[float | None] = []
    for of_answer in zip(*members, strict=True):
        known = [score for score in of_answer if score is not None]
        scores.append(one_score(of_answer, ensemble))
        spread.append(deviation(known) if 1 < len(known) == len(of_answer) else None)
    return Scores(scores, spread)


class MarkingScorer:
    """A chat model's mark from 1 to 10 for one answer; None where no mark could be read."""

    def __init__(self, asker: Asker, *, criteria: str, max_tokens: int = 512) -> None:
        """
        Args:
            max_tokens: longest reply of a model that thinks aloud; others have room for a number.
        """
        self._asker, self._criteria, self._max_tokens = asker, criteria, max_tokens
        self.name = asker.name

    def __call__(self, prompt: Text, answer: str, row: Mapping[str, Any]) -> float | None:
        return self.score_all([(prompt, answer, row)])[0]

    def score_all(self, items: Sequence[Item], **_: Any) -> list[float | None]:
        """The marks of all answers, asked at once."""
        questions = [self._question(prompt, answer) for prompt, answer, _ in items]
        found = self._asker.ask_all(questions, read=_mark_or_nothing, kind="mark-1", max_tokens=_MARK_TOKENS)
        thinking = [place for place, mark in enumerate(found) if mark is not None and math.isnan(mark)]
        if thinking:  # the reply ended inside a thought
            asked = [questions[place] for place in thinking]
            marks = self._asker.ask_all(asked, read=read_mark, kind="mark-1", max_tokens=self._max_tokens)
            found = [None if mark is None or math.isnan(mark) else mark for mark in found]
            for place, mark in zip(thinking, marks, strict=True):
                found[place] = mark
        return found

    def _question(self, prompt: Text, answer: str) -> list[Message]:
        text = (
            f"Give one mark from 1 (worst) to {_BEST:g} (best) to the answer below. {self._criteria} Reply with the "
            f"number alone.\n\n[Conversation]\n{as_transcript(prompt)}\n\n"
            f"[Answer]\n{defused(answer, 'answer|mark')}\n\n[Mark]"
        )
        return [{"role": "user", "content": text}]


def _mark_or_nothing(reply: str) -> float | None:
    """The mark; NaN for a reply without an answer."""
    return read_mark(reply) if reply.strip() else math.nan


def read_mark(reply: str) -> float | None:
    """The last number of a reply, if it lies within 1 and 10; of "7/10" and "7 out of 10" it is the 7."""
    found = _MARK.findall(_OF_TEN.sub("", unmarked(reply)))
    mark = float(found[-1]) if found else None
    return mark if mark is not None and 1 <= mark <= _BEST else None


def open_score(
    specs: Sequence[str],
    opened: ExitStack,
    *,
    ensemble: str = "mean",
    thoughts: bool = False,
    options: JudgeOptions | None = None,
) -> Score:
    """The scorers that `reward_model` names.

    Args:
        specs: of each a folder or hub id of a reward model, or `reward:MODEL`, `rule:MODULE:FUNCTION` (three arguments:
            prompt, answer, row), `openai:MODEL@BASE_URL`, `local:MODEL`, or a rule of `rule_reward`.
        opened: closes what is connected.
    Raises:
        RequestError: a spec that names something that compares answers and does not rate them.
        ModelError: there is no such model.
    """
    scorers = [_open(spec, opened, options or JudgeOptions()) for spec in specs]
    return Score(scorers, ensemble=ensemble, thoughts=thoughts)


def judge_options(args: Any) -> JudgeOptions:
    """What a configuration says of models that judge on this machine."""
    return JudgeOptions(model={"trust_remote_code": True} if args.trust_remote_code else {})


def as_spec(name: str) -> str:
    """What was named, with its kind in front, except a rule that ships."""
    kinds = ("reward", "rule", "openai", "local")
    known = name.partition(":")[0] in kinds and ":" in name
    return name if known or rule_reward(name) is not None else f"reward:{name}"


def _open(name: str, opened: ExitStack, options: JudgeOptions) -> Scorer:
    rule = rule_reward(name)
    if rule is not None:
        return rule
    spec = as_spec(name)
    if judge_kind(spec) == "reward":
        from preftune.judges.reward_model import open_reward_model

        # every answer is new, so its score is not kept on disk
        return open_reward_model(spec.partition(":")[2], batch_size=options.batch_size or 16, **options.model)
    judge = open_judge(spec, opened, options)
    if judge.scorer is not None:
        return judge.scorer
    if judge.asker is not None:
        from preftune.judges.pairwise_llm import CRITERIA

        return MarkingScorer(judge.asker, criteria=options.criteria or CRITERIA, max_tokens=options.max_tokens)
    raise RequestError(
        f"{name} compares two answers, but a score for one is needed. Give a function of three arguments (prompt, "
        "answer, row) that returns a number, a reward model, or a chat model; preftune online takes any judge."
    )
