"""Rewards of answers: functions as TRL takes them, preftune's scorers, reward models, and sums of several."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from preftune.amounts import counted, shown
from preftune.errors import ConfigError, PreftuneError, RequestError
from preftune.judges.protocol import LARGEST_SCORE, Item, Scorer
from preftune.judges.reward_model import RewardModel
from preftune.judges.user_rules import adapted
from preftune.models import load_tokenizer
from preftune.training.online.rollout import Rollout
from preftune.training.online.scoring import Scorers, judge_options, open_score


class BatchFunction:
    """A reward function of TRL's form: `f(prompts, completions, **columns)`, lists in, a list of numbers out.

    It may be `async`. Answers to conversations are given as one turn of the assistant each, as TRL gives them; every
    other column of the rows is a keyword, and so are `completion_ids`, the answers' token ids, `trainer_state` and
    `log_metric(name, value)`.
    """

    cache_key = None

    context: Callable[[], Mapping[str, Any]] = dict
    """What the trainer says besides the rows; a column of the same name comes first."""

    def __init__(self, function: Callable[..., Any]) -> None:
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
        columns = {**self.context(), **columns}
        given = columns if self._all else {name: value for name, value in columns.items() if name in self._names}
        returned = self._function(**given)
        returned = asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned
        found = None if isinstance(returned, str | bytes | Mapping) else _listed(returned)
        if found is None or len(found) != len(items):
            numbers = f"{shown(returned)}, not a list," if found is None else counted(len(found), "number")
            missing = " Its return is probably missing." if returned is None else ""
            raise RequestError(
                f"Reward {self.name!r} returned {numbers} for {counted(len(items), 'answer')}.{missing} Return a list "
                "with one number per answer (None for an answer that it does not rate)."
            )
        return found


async def _awaited(result: Awaitable[Sequence[float | None]]) -> Sequence[float | None]:
    return await result


def _listed(values: Any) -> list[Any] | None:
    """The values in a list; None for a single value."""
    try:
        found = iter(values)
    except TypeError:  # also of a tensor without dimensions
        return None
    return list(found)


class Rewards(Scorers):
    """The weighted sum of several rewards; None counts for nothing in it."""

    def __init__(self, scorers: Sequence[Scorer], weights: Sequence[float] | None, *, thoughts: bool) -> None:
        super().__init__(scorers, thoughts=thoughts)
        self._weights = [1.0] * len(self.scorers) if weights is None else list(weights)
        if len(self._weights) != len(self.scorers):
            raise ConfigError(
                f"reward_weights={weights} has {counted(len(self._weights), 'weight')} for "
                f"{counted(len(self.scorers), 'reward')} ({', '.join(self.names)}). Give one per reward."
            )

    def __call__(self, rollouts: Sequence[Rollout]) -> tuple[list[float | None], list[list[float | None]]]:
        """The sum for every answer (None where no reward rates it), and each reward's own."""
        ids = [{"completion_ids": list(rollout.response_ids)} for rollout in rollouts]
        items = [
            (prompt, text, {**row, **own}) for (prompt, text, row), own in zip(self.items(rollouts), ids, strict=True)
        ]
        members = self.members(items)
        sums: list[float | None] = []
        for of_answer in zip(*members, strict=True):
            known = [w * score for w, score in zip(self._weights, of_answer, strict=True) if score is not None]
            sums.append(sum(known) if known else None)
            if not abs(sums[-1] or 0.0) <= LARGEST_SCORE:
                raise self._not_finite(of_answer)
        return sums, members

    def _not_finite(self, of_answer: Sequence[float | None]) -> RequestError:
        """The error for an answer whose weighted rewards have no finite sum; it names the largest of them."""
        parts = zip(self.names, self._weights, (score or 0.0 for score in of_answer), strict=True)
        name, weight, score = max(parts, key=lambda part: abs(part[1] * part[2]))
        return RequestError(
            f"The weighted reward of an answer is not a finite number: reward {name!r} gave {score:g}, and its weight "
            f"is {weight:g}. Give it a smaller one in reward_weights; 1 is usual."
        )


def open_rewards(given: Any, args: Any, opened: ExitStack, *, tokenizers: Any = None) -> Rewards:
    """The rewards that a trainer is given, or that its configuration names.

    Args:
        given: a function, a reward model or its name, or a list of these; None for `args.reward_model`.
        tokenizers: of reward models in memory: one, or a list with one (or None) for each reward.
    Raises:
        ConfigError: without a reward, with an empty list, or with both.
        RequestError: for a function that compares two answers.
    """
    given = None if isinstance(given, list | tuple) and not given else given
    if (given is None) == (not args.reward_model):
        raise ConfigError(
            "a reward must rate the answers: pass reward_funcs=..., or name it in reward_model=... (--reward_model)."
        )
    asked = args.reward_model if given is None else given
    asked = asked if isinstance(asked, list | tuple) else [asked]
    known = tokenizers if isinstance(tokenizers, list | tuple) else [tokenizers]
    if tokenizers is None:
        known = [None] * len(asked)
    if len(known) != len(asked):
        raise ConfigError(
            f"reward_processing_classes has {counted(len(known), 'tokenizer')} for {counted(len(asked), 'reward')}, "
            "but their numbers must match. Give a list with one per reward, None for a function."
        )
    scorers = [_scorer(one, args, opened, tokenizer) for one, tokenizer in zip(asked, known, strict=True)]
    return Rewards(scorers, args.reward_weights, thoughts=args.judge_thoughts)


def _scorer(given: Any, args: Any, opened: ExitStack, tokenizer: Any) -> Scorer:
    if isinstance(given, nn.Module):
        if not hasattr(given, "config"):
            raise ConfigError(f"reward_funcs: {type(given).__name__} is not a reward model of transformers. Give one.")
        name = getattr(given.config, "name_or_path", "") or type(given).__name__
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = load_tokenizer(tokenizer)
        return RewardModel.held(given, tokenizer or _tokenizer_of(name), name=name)
    if tokenizer is not None:
        raise ConfigError(
            "reward_processing_classes has a tokenizer for a reward that is not a model in memory; a named reward "
            "model has its own. Remove it, or pass the model."
        )
    if isinstance(given, str | os.PathLike):
        return open_score([os.fspath(given)], opened, options=judge_options(args)).scorers[0]
    if not callable(given):
        raise ConfigError(f"reward_funcs: {given!r} is neither a function nor the name of a reward model.")
    if {"completions", "completion_ids"} & set(_parameters(given)):
        return BatchFunction(given)
    rule = adapted(given)
    if not rule.scores:
        raise ConfigError("reward_funcs compares two answers, but a reward rates one. Give a scorer, or use online.")
    found: Scorer = rule.call
    return found


def _tokenizer_of(name: str) -> Any:
    """The tokenizer that a reward model in memory was saved with."""
    try:
        return load_tokenizer(name)
    except PreftuneError as error:
        raise ConfigError(
            f"the reward model {name} has no tokenizer. Pass reward_processing_classes=tokenizer, or its folder or "
            "hub id instead of the model."
        ) from error


def _parameters(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
