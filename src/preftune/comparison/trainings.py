"""The trainings of a comparison: their recipes, and the limits that keep them within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from preftune.amounts import counted
from preftune.comparison.data import Parts
from preftune.comparison.measure import Ruler
from preftune.comparison.methods import Method
from preftune.comparison.plan import Budget, Settings, Trial, amount_in_words
from preftune.comparison.result import Tried
from preftune.errors import RequestError
from preftune.generation.lazy_model import ModelSource
from preftune.generation.prompts import prompt_key
from preftune.judges.protocol import Judge
from preftune.storage.jsonl import digest, read_lines
from preftune.training.stages import Outcome, Stage, run_stage

Say = Callable[[str], None]

_MINI_BATCHES = 4
"""The default number of mini-batches in a round of PPO."""
_GENERATIONS = {"grpo": 8, "rloo": 2, "online": 2, "xpo": 2, "nash-md": 2}
"""The default number of answers to a prompt."""
_BATCHES_OF_PROMPTS = ("online", "xpo", "nash-md")
"""Commands whose batch size counts prompts, not answers."""
_ENDLESS = 10_000_000
"""Episodes of a training that seconds or tokens end."""
_SET: Mapping[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "report_to": "none",
    "lr_scheduler_type": "constant",  # a schedule needs to know the last step
}
SET_HERE = (
    *_SET, "model_name_or_path", "dataset_name", "eval_dataset_name", "eval_fraction", "output_dir", "reward_model",
    "seed", "max_seconds", "max_train_tokens", "max_steps", "resume_from_checkpoint",
    "model_revision",  # the start's answers and the KL use the main revision
    "reference_cache",  # scores of one trial would take no time in the next
    "warmup_steps", "warmup_ratio", "lr_scheduler_kwargs",  # a constant rate has none of these
)  # fmt: skip
"""Fields of the trainings that a user cannot set."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a comparison."""

    start: str
    """The model from which all methods start: a folder or hub id."""
    methods: Sequence[Method]
    data_name: str
    parts: Parts
    train_file: Path
    held_out_file: Path | None
    """Pairs that are not trained on, for the reward model's accuracy."""
    output: Path
    budget: Budget
    seeds: Sequence[int]
    trials: Mapping[str, Sequence[Settings]]
    """Settings of the trials, by the name of the method."""
    shared: Mapping[str, str]
    """Settings of every training."""
    reward: Mapping[str, str]
    """Settings of the reward model's training."""
    ruler: Ruler
    judge: Judge
    gold_name: str | None
    model: Mapping[str, Any]
    """Options with which models are loaded to answer: `dtype`, `load_in_4bit`, `trust_remote_code`."""
    again: bool = False
    """Whether the judge is asked again about rows for which no verdict could be read in an earlier run."""

    @property
    def questions(self) -> int:
        """The most comparisons of two answers by the judge: each trial with the start, and for each seed every method
        with the start and with every other method."""
        trials = sum(map(len, self.trials.values()))
        duels = math.comb(len(self.methods) + 1, 2)
        return trials * len(self.parts.tune) + duels * len(self.seeds) * len(self.parts.test)


class Trainings:
    """Trains the trials and the reward models of a comparison, each once."""

    def __init__(self, plan: Plan, start: ModelSource, say: Say) -> None:
        self.plan, self._start, self._say = plan, start, say
        self._announced: set[str] = set()

    def train(self, trial: Trial) -> Tried:
        budget = self.plan.budget
        reward: Outcome | None = None
        left = budget
        if trial.method.needs_reward:
            reward = self._reward_model(trial.seed)
            left = budget.less(self._used("reward", self._reward_stage(trial.seed), reward))
            if left.amount < 1:
                raise RequestError(
                    f"--budget {budget.words()} is used up by the reward model, so that nothing is left for "
                    f"{trial.method.title}. Give more."
                )
        stage = self._stage(trial, left)
        outcome = self._run(stage, f"{trial.name} ({trial.label})")
        used = self._used(trial.method.command, stage, outcome) + budget.amount - left.amount
        before = None if reward is None else reward.to_dict()
        values = {field.name: getattr(trial, field.name) for field in fields(trial)}
        return Tried(**values, finished=outcome.finished, outcome=outcome.to_dict(), reward_outcome=before, used=used)

    def _reward_model(self, seed: int) -> Outcome:
        """The training of a seed's reward model. Raises: RequestError if it did not finish."""
        stage = self._reward_stage(seed)
        outcome = self._run(stage, stage.folder.name)
        if not outcome.finished:
            raise RequestError(f"The reward model did not finish: {outcome.error}. Its log is {stage.folder}/log.txt.")
        return outcome

    def _reward_stage(self, seed: int) -> Stage:
        plan = self.plan
        held_out = {} if plan.held_out_file is None else {"eval_dataset_name": str(plan.held_out_file)}
        settings = {"num_train_epochs": "1", "logging_steps": 1, **plan.shared, **plan.reward}
        limit = _limit("reward", plan.budget.half(), settings, plan.parts)
        recipe = {**self._common(seed), **held_out, **settings, **limit}
        return Stage("reward", plan.output / "trials" / f"reward-seed{seed}", recipe, self._made_of)

    def _stage(self, trial: Trial, budget: Budget) -> Stage:
        method = trial.method
        own: dict[str, Any] = {}
        if not method.needs_reward:  # methods that train on fresh answers log once a round
            own = {"logging_steps": 1}
            if self.plan.budget.unit == "seconds":
                # cached scores of an earlier trial would leave later trials more time for training
                own["reference_cache"] = False
        settings = {"guard": "off", **own, **method.fixed, **self.plan.shared, **trial.settings}
        limit = _limit(method.command, budget, settings, self.plan.parts)
        recipe = {**self._common(trial.seed), **settings, **limit}
        made_of = self._made_of
        if method.needs_reward:
            reward = self._reward_stage(trial.seed)
            recipe["reward_model"] = str(reward.folder)
            made_of = digest([made_of, dict(reward.recipe)])
        return Stage(method.command, self.folder(trial), recipe, made_of)

    def _common(self, seed: int) -> dict[str, Any]:
        return {
            "model_name_or_path": self.plan.start,
            "dataset_name": str(self.plan.train_file),
            **_SET,
            "seed": seed,
        }

    @cached_property
    def _made_of(self) -> str:
        return digest([self._start.identity, self.plan.parts.fingerprint])

    def _run(self, stage: Stage, name: str) -> Outcome:
        outcome = run_stage(stage)
        if outcome.again and outcome.finished:
            self._say(
                f"{name}: trained in {amount_in_words('seconds', outcome.seconds)}, {counted(outcome.steps, 'step')}"
            )
        elif outcome.finished and name not in self._announced:
            self._say(f"{name}: already exists")
        self._announced.add(name)
        return outcome

    def _used(self, command: str, stage: Stage, outcome: Outcome) -> float:
        """The part of the budget that a training used, in the budget's unit."""
        unit = self.plan.budget.unit
        if unit != "pairs":
            return float(outcome.spent.get(unit, 0.0))
        if "episodes" in outcome.spent:
            return float(outcome.spent["episodes"]) / 2
        return float(outcome.steps * _batch(stage.recipe) / _rows_of_a_pair(command))

    def reward_accuracy(self) -> float | None:
        """Accuracy of the reward models on pairs that they were not trained on, mean over seeds, 0 to 1; None without
        such pairs."""
        found = []
        for seed in self.plan.seeds:
            lines = read_lines(self.plan.output / "trials" / f"reward-seed{seed}" / "metrics.jsonl")
            found += [line["eval_accuracy"] for line in lines if "eval_accuracy" in line][-1:]
        return sum(found) / len(found) if found else None

    def folder(self, trial: Trial) -> Path:
        """The run directory of a trial."""
        return self.plan.output / "trials" / trial.name


def _limit(command: str, budget: Budget, settings: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The fields that limit a training to its budget. Its own epochs or episodes may end it earlier."""
    answers = command not in ("dpo", "kto", "reward")
    own_end = any(name in settings for name in ("total_episodes", "num_train_epochs"))
    endless = {"total_episodes": _ENDLESS} if answers and not own_end else {}
    if budget.unit == "seconds":
        return {**endless, "max_seconds": budget.amount}
    if budget.unit == "tokens":
        return {**endless, "max_train_tokens": int(budget.amount)}
    epochs = float(settings["num_train_epochs"]) if "num_train_epochs" in settings else math.inf
    if answers:
        a_round, each = _batch(settings), 1
        if command == "ppo":
            a_round *= int(settings.get("num_mini_batches", _MINI_BATCHES))
        else:
            each = int(settings.get("num_generations", _GENERATIONS[command]))
            a_round *= each if command in _BATCHES_OF_PROMPTS else 1
        fits = max(a_round, int(2 * budget.amount) // a_round * a_round)
        own = int(settings.get("total_episodes") or 0) or epochs * each * len({prompt_key(p) for p in parts.train})
        return {"total_episodes": max(1, round(min(fits, own)))}
    rows = _rows_of_a_pair(command)
    own = epochs * math.ceil(rows * len(parts.train) / _batch(settings))
    return {"max_steps": max(1, math.ceil(min(int(rows * budget.amount) // _batch(settings), own)))}


def _rows_of_a_pair(command: str) -> int:
    """Training rows that a pair gives: KTO makes a row of each answer."""
    return 2 if command == "kto" else 1


def _batch(settings: Mapping[str, Any]) -> int:
    """Rows of an optimiser step."""
    return int(settings.get("per_device_train_batch_size", 8)) * int(settings.get("gradient_accumulation_steps", 1))
