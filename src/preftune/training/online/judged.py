"""`JudgedTrainer`: trainers whose answers a judge compares, or rewards rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, TypeAlias

from preftune.errors import ConfigError
from preftune.evaluation.labelling.sample_groups import Group, LabelCounts
from preftune.evaluation.labelling.scoring import ByComparison, Rated
from preftune.judges.protocol import Judge
from preftune.judges.registry import open_judge
from preftune.judges.user_rules import adapted
from preftune.training.online.config import JudgedConfig
from preftune.training.online.reward_functions import open_rewards
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import Score, judge_options, open_score, row_of
from preftune.training.online.trainer import OnlineTrainer
from preftune.training.setup.arguments import own_config
from preftune.training.step.shares import shared

Answers: TypeAlias = Sequence[Rollout]
"""All answers to one prompt."""


class JudgedTrainer(OnlineTrainer):
    """The common part.

    Args:
        judge: the judge of answers, instead of `judge` or `reward_model` of the configuration: a `Judge` (prompt,
            two answers, row) or a `Scorer` (prompt, answer, row).
        reward_funcs: the rewards of an answer, under TRL's name; see `GroupTrainer`.
        reward_processing_classes: the tokenizer of a reward model in memory; of several rewards a list.
        model, args, train_dataset, and the rest: as for `OnlineTrainer`.
    """

    args: JudgedConfig
    config_class: ClassVar[type[JudgedConfig]]

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *,
        judge: Any = None,
        reward_funcs: Any = None,
        reward_processing_classes: Any = None,
        **options: Any,
    ) -> None:
        args = own_config(args, self.config_class, method=self.method)
        if sum((judge is not None, reward_funcs is not None, args.judge is not None, bool(args.reward_model))) != 1:
            raise ConfigError(
                "a judge or a reward must decide which answer is better: pass judge=... or reward_funcs=..., or name "
                f"it in {self.config_class.__name__}(judge=...) or reward_model=... (--judge, --reward_model)."
            )
        if args.reward_weights is not None and reward_funcs is None:
            raise ConfigError(
                "reward_weights need reward_funcs, but no reward function was passed. Leave them out; reward_ensemble "
                "combines several reward models."
            )
        self._opened = ExitStack()
        self.answers_per_prompt = args.num_generations
        if reward_funcs is None:
            self._rater: _ByScore | _ByJudge = _rater(judge, args, self._opened)
        else:
            rewards = open_rewards(reward_funcs, args, self._opened, tokenizers=reward_processing_classes)
            self._rater = _ByScore(lambda answers: rewards(answers)[0], rewards.name, rewards.keys)
        self.rated_by, self.rated_with = self._rater.name, self._rater.keys
        super().__init__(model, args, train_dataset, **options)

    def rated(self, rollouts: Sequence[Rollout]) -> list[tuple[Answers, Rated]]:
        """The answers to each prompt with their verdicts or scores. Logs the mean score of the policy's answers."""
        size = self.answers_per_prompt
        asked = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        rated = shared(self, len(asked), lambda places: self._rater([asked[place] for place in places]))
        found = list(zip(asked, rated, strict=True))
        known = [
            score
            for answers, rated in found
            if rated.comparisons is None
            for rollout, score in zip(answers, rated.scores, strict=True)
            if score is not None and rollout in self.own_answers(answers)
        ]
        if known:
            self._window.add({"objective/scores": sum(known) / len(known)}, weight=len(known))
        return found

    def scores_of(self, answers: Answers, rated: Rated) -> list[float | None]:
        """The scores minus the penalty of answers that did not end."""
        penalty = self.args.missing_eos_penalty or 0.0
        return [
            None if score is None else float(score) - penalty * (not answer.finished)
            for answer, score in zip(answers, rated.scores, strict=True)
        ]


class _ByScore:
    """Rates every answer separately; keeps nothing, where answers never come again."""

    def __init__(
        self, score: Callable[[Answers], Sequence[float | None]], name: str, keys: Sequence[str | None]
    ) -> None:
        self._score, self.name, self.keys = score, name, list(keys)

    def __call__(self, asked: Sequence[Answers]) -> list[Rated]:
        found = iter(self._score([answer for answers in asked for answer in answers]))
        return [Rated([next(found) for _ in answers]) for answers in asked]


class _ByJudge:
    """Compares each two answers to a prompt."""

    def __init__(self, judge: Judge, *, thoughts: bool) -> None:
        self._judge, self._thoughts = ByComparison(judge), thoughts
        self.name, self.keys = self._judge.name, self._judge.keys

    def __call__(self, asked: Sequence[Answers]) -> list[Rated]:
        groups = [_group(answers, thoughts=self._thoughts) for answers in asked]
        return list(self._judge.rate(groups, LabelCounts(), None))


def _rater(judge: Any, args: JudgedConfig, opened: ExitStack) -> _ByScore | _ByJudge:
    thoughts = args.judge_thoughts
    if args.reward_model:
        ensemble, options = args.reward_ensemble, judge_options(args)
        return _by_score(open_score(args.reward_model, opened, ensemble=ensemble, thoughts=thoughts, options=options))
    if judge is None:
        found = open_judge(str(args.judge), opened, judge_options(args))
        if found.scorer is None:
            return _ByJudge(found.judge, thoughts=thoughts)
        return _by_score(Score([found.scorer], thoughts=thoughts))
    rule = adapted(judge)
    return _by_score(Score([rule.call], thoughts=thoughts)) if rule.scores else _ByJudge(rule.call, thoughts=thoughts)


def _by_score(score: Score) -> _ByScore:
    return _ByScore(lambda answers: score(answers).scores, score.name, score.keys)


def _group(answers: Answers, *, thoughts: bool) -> Group:
    """The answers to one prompt in the form for judges."""
    prompt = answers[0].prompt
    return Group(
        id=prompt.id,
        prompt=prompt.prompt,
        answers=tuple(answer.text for answer in answers),
        judged=tuple(answer.judged(thoughts=thoughts) for answer in answers),
        samples=tuple(range(len(answers))),
        row=row_of(prompt),
        carried={},
    )
