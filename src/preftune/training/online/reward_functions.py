"""Rewards of answers: functions as TRL takes them, preftune's scorers, reward models, and sums of several."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from preftune.errors import ConfigError, RequestError
from preftune.judges.protocol import Item, Scorer, judge_name, score_all
from preftune.judges.user_rules import adapted
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import judge_options, open_score, row_of


class BatchFunction:
    """A reward function of TRL's form: `f(prompts, completions, **columns)`, lists in, a list of numbers out.

    Answers to conversations are given as one turn of the assistant each, as TRL gives them; every other column of the
    rows is a keyword.
    """

    cache_key = None

    def __init__(self, function: Callable[..., Sequence[float | None]]) -> None:
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        parameters = inspect.signature(function).parameters.values()
        self._all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, prompt: Any, answer: str, row: Mapping[str, Any]) -> float | None:
        return self.score_all([(prompt, answer, row)])[0]

    def score_all(self, items: Sequence[Item], **_: Any) -> list[float | None]:
        """The rewards of all answers, in one call. Raises: RequestError for another number of rewards than answers."""
        columns: dict[str, Any] = {"prompts": [prompt for prompt, _, _ in items]}
        columns["completions"] = [
            answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
            for prompt, answer, _ in items
        ]
        for name in dict.fromkeys(name for _, _, row in items for name in row):
            columns.setdefault(name, [row.get(name) for _, _, row in items])
        given = columns if self._all else {name: value for name, value in columns.items() if name in self._names}
        found = list(self._function(**given))
        if len(found) != len(items):
            raise RequestError(
                f"Reward {self.name!r} returned {len(found)} numbers for {len(items)} answers. Return a list with one "
                "for each (None for an answer that it does not rate)."
            )
        return found


class Rewards:
    """The weighted sum of several rewards; None counts for nothing in it."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float] | None, *, thoughts: bool) -> None:
        self.scorers, self._thoughts = list(scorers), thoughts
        self.names = [judge_name(scorer) for scorer in scorers]
        self.keys = [getattr(scorer, "cache_key", None) for scorer in scorers]
        self._weights = [1.0] * len(self.scorers) if weights is None else list(weights)
        if len(self._weights) != len(self.scorers):
            raise ConfigError(
                f"reward_weights={weights} has {len(self._weights)} weights for {len(self.scorers)} rewards "
                f"({', '.join(self.names)}). Give one for each."
            )

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    def __call__(self, rollouts: Sequence[Rollout]) -> tuple[list[float | None], list[list[float | None]]]:
        """The sum for every answer (None where no reward rates it), and each reward's own."""
        items = [(one.prompt.prompt, one.judged(thoughts=self._thoughts), row_of(one.prompt)) for one in rollouts]
        members = [score_all(scorer, items) for scorer in self.scorers]
        sums: list[float | None] = []
        for of_answer in zip(*members, strict=True):
            known = [w * score for w, score in zip(self._weights, of_answer, strict=True) if score is not None]
            sums.append(sum(known) if known else None)
        return sums, members


def open_rewards(given: Any, args: Any, opened: ExitStack) -> Rewards:
    """The rewards that a trainer is given, or that its configuration names.

    Args:
        given: a function, the name of a reward model, or a list of these; None for `args.reward_model`.
    Raises: ConfigError without a reward, or with both; RequestError for a function that compares two answers.
    """
    if (given is None) == (not args.reward_model):
        raise ConfigError(
            "something must rate the answers: pass reward_funcs=..., or name it in reward_model=... (--reward_model)."
        )
    asked = args.reward_model if given is None else given
    asked = asked if isinstance(asked, list | tuple) else [asked]
    return Rewards([_scorer(one, args, opened) for one in asked], args.reward_weights, thoughts=args.judge_thoughts)


def _scorer(given: Any, args: Any, opened: ExitStack) -> Scorer:
    if isinstance(given, str):
        return open_score([given], opened, options=judge_options(args)).scorers[0]
    if not callable(given):
        raise ConfigError(f"reward_funcs: {given!r} is neither a function nor the name of a reward model.")
    if "completions" in _parameters(given):
        return BatchFunction(given)
    rule = adapted(given)
    if not rule.scores:
        raise ConfigError("reward_funcs compares two answers, and a reward is of one. Give a scorer, or use online.")
    found: Scorer = rule.call
    return found


def _parameters(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
