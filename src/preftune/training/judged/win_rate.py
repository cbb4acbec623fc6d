"""How often a judge prefers the policy's answers to the reference's, measured at every evaluation.

Each rank answers its share of the prompts, greedily; the first rank judges, and the others wait for its verdicts. No
random state of the training is touched, so weights are the same with and without it.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from preftune.amounts import counted
from preftune.errors import PreftuneError, RequestError
from preftune.evaluation.two_models.run import judge_rows
from preftune.evaluation.two_models.summary import at_equal_length, rate_of
from preftune.evaluation.two_models.types import AnsweredRow, JudgedRow
from preftune.generation.generate import generate
from preftune.generation.protocol import Kept
from preftune.judges.registry import JudgeOptions, OpenedJudge, open_judge
from preftune.log import say, warn
from preftune.models.positions import limit_of
from preftune.reference import unwrap
from preftune.storage.jsonl import append_lines, digest
from preftune.storage.run_directory import cut_back
from preftune.training.config.base import PackedConfig
from preftune.training.config.eval_judge import AT_LENGTH, NEW_TOKENS, WIN_RATES
from preftune.training.judged.prompts import SINGLE, Asked, asked_of
from preftune.training.judged.reference_answers import reference_answers, reference_key
from preftune.training.protocol import GroupTrainerView
from preftune.training.setup.streams import about_guard
from preftune.training.step.optimizer_step import RandomState
from preftune.training.step.shares import shared

FILE = "eval_answers.jsonl"
"""The answers of every evaluation with their verdicts, in the run directory."""


class JudgedEvaluation:
    """Answers, judges and counts for one trainer.

    Args:
        judge: of `judge_of`; closed with this object.
        held_out: its held-out rows, opened; or several sets by name.
    """

    def __init__(self, trainer: GroupTrainerView, judge: tuple[OpenedJudge, ExitStack], held_out: Any) -> None:
        args = trainer.args
        self._trainer, self._tokens = trainer, args.eval_max_new_tokens or NEW_TOKENS
        self._file = Path(args.output_dir) / FILE
        self._judge, opened = judge
        weakref.finalize(self, opened.close)  # connections, and the cache of verdicts
        limit = limit_of(trainer.model)
        longest = None if limit is None else limit - self._tokens
        held_out = about_guard(held_out, trainer.eval_dataset or {})
        self._asked = asked_of(held_out, args, trainer.processing_class, longest=longest)
        needs = getattr(self._judge.judge, "needs", None)
        if needs is not None:
            for one in (one for of_set in self._asked.values() for one in of_set):
                needs(one.row)
        self._reference: dict[str, list[Kept]] | None = None
        self._seconds = self._reference_seconds = 0.0
        self._evaluations = 0

    # --- before the first step ---

    def begin(self, *, resumed_step: int | None) -> None:
        """Before a training: the reference's answers, and no lines of later steps in the file."""
        if self._trainer.is_world_process_zero():
            if resumed_step is None:
                self._file.unlink(missing_ok=True)
            else:
                cut_back(self._file, resumed_step)
        self.draw()

    def draw(self) -> None:
        """Has the reference answer, as long as the policy is the model as received."""
        if self._reference is not None:
            return
        began, trainer = time.perf_counter(), self._trainer
        if self._judge.endpoint is not None:
            trainer._on_first_rank(self._judge.endpoint.check)
        with self._undisturbed():
            key = reference_key(trainer, self._tokens)
            self._reference = {
                name: reference_answers(trainer, asked, self._answers, key=key, share=self._shared)
                for name, asked in self._asked.items()
            }
        self._reference_seconds = time.perf_counter() - began
        prompts = sum(map(len, self._asked.values()))
        say(
            f"eval_judge: {self._judge.name} compares answers to {counted(prompts, 'held-out prompt')} (at most "
            f"{counted(self._tokens, 'token')} each) with the reference's at every evaluation."
        )
        self._note()

    # --- an evaluation ---

    def metrics(self, prefix: str) -> dict[str, float]:
        """What an evaluation with this prefix (eval, or eval_NAME) says of its prompts; empty for other sets.

        Without `metric_for_best_model` among them, a judge that fails is reported and the metrics are left out.
        """
        name = SINGLE if prefix == SINGLE else prefix.removeprefix(f"{SINGLE}_")
        asked = self._asked.get(name)
        if asked is None:
            return {}
        self.draw()
        assert self._reference is not None
        began = time.perf_counter()
        try:
            with self._undisturbed():
                answered = self._answered(asked, self._reference[name])
                judged = self._on_first_rank(lambda: self._judged(answered, asked))
        except PreftuneError as error:
            if self._best(prefix) is not None:
                raise
            warn(f"eval_judge: no win rate at step {self._trainer.state.global_step}: {error}")
            return {}
        found = _metrics(answered, judged, need_at_length=self._best(prefix) == AT_LENGTH)
        seconds = time.perf_counter() - began
        self._seconds, self._evaluations = self._seconds + seconds, self._evaluations + 1
        if self._trainer.is_world_process_zero():
            append_lines(self._file, self._lines(name, answered, judged))
        self._note()
        return {**found, "win_rate_seconds": round(seconds, 3)}

    def _best(self, prefix: str) -> str | None:
        """The one of these metrics that chooses the best model, without prefix."""
        best = str(self._trainer.args.metric_for_best_model or "")
        name = best.removeprefix(f"{prefix}_")
        return name if best.startswith(f"{prefix}_") and name in WIN_RATES else None

    def _answered(self, asked: Sequence[Asked], reference: Sequence[Kept]) -> list[AnsweredRow]:
        answers = self._shared(asked, self._answers)
        return [
            AnsweredRow(
                id=str(one.row["id"]),
                prompt=one.row["prompt"],
                base=before.text,
                aligned=now.text,
                base_tokens=before.tokens,
                aligned_tokens=now.tokens,
                base_finished=before.finished,
                aligned_finished=now.finished,
                base_thought=before.thought,
                aligned_thought=now.thought,
                base_thought_tokens=before.thought_tokens,
                aligned_thought_tokens=now.thought_tokens,
            )
            for one, before, now in zip(asked, reference, answers, strict=True)
        ]

    def _judged(self, answered: Sequence[AnsweredRow], asked: Sequence[Asked]) -> list[JudgedRow]:
        return judge_rows(answered, [one.row for one in asked], judge=self._judge.judge)

    def _answers(self, asked: Sequence[Asked]) -> list[Kept]:
        """What the model says now."""
        trainer = self._trainer
        found = generate(
            unwrap(trainer.model),
            trainer.processing_class,
            [list(one.ids) for one in asked],
            max_new_tokens=self._tokens,
            batch_size=trainer.args.per_device_eval_batch_size,
            autocast=trainer.precision.autocast,
        )
        return [Kept.of(one) for one in found]

    def _shared(self, asked: Sequence[Asked], answer: Callable[[Sequence[Asked]], list[Kept]]) -> list[Kept]:
        if self._trainer.args.sharding is not None:  # no rank can generate alone
            return answer(asked)
        return shared(self._trainer, len(asked), lambda places: answer([asked[place] for place in places]))

    def _on_first_rank(self, work: Callable[[], list[JudgedRow]]) -> list[JudgedRow]:
        def safe() -> list[JudgedRow]:
            try:
                return work()
            except PreftuneError:
                raise
            except Exception as error:  # the other ranks wait for this one
                raise RequestError(f"{self._judge.name} failed with {type(error).__name__}: {error}") from error

        return self._trainer._on_first_rank(safe)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """The random states afterwards are those before: a judge of the user's may draw numbers."""
        torchs, pythons, numpys = RandomState.of(self._trainer.args.device), random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            torchs.restore()
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002

    # --- what is written ---

    def _lines(self, name: str, answered: Sequence[AnsweredRow], judged: Sequence[JudgedRow]) -> list[dict[str, Any]]:
        step = self._trainer.state.global_step
        return [
            {
                "step": step,
                "set": name,
                **{key: value for key, value in row.to_dict().items() if key not in ("key", "category")},
                "value": verdict.value,
                "unjudged": verdict.unjudged,
            }
            for row, verdict in zip(answered, judged, strict=True)
        ]

    def _note(self) -> None:
        self._trainer._record.note(eval_judge=self.record())

    def record(self) -> Mapping[str, Any]:
        """For run.json."""
        return {
            "judge": self._judge.name,
            "prompts": {name: len(asked) for name, asked in self._asked.items()},
            "max_new_tokens": self._tokens,
            "evaluations": self._evaluations,
            "seconds": round(self._seconds, 3),
            "reference_seconds": round(self._reference_seconds, 3),
        }


def judge_of(args: PackedConfig) -> tuple[OpenedJudge, ExitStack] | None:
    """The judge that `eval_judge` names, and what closes it; None without. Called before the policy is loaded, which
    takes longer.

    Raises: RequestError for a rule, ModelError for a model that cannot be had.
    """
    if args.eval_judge is None:
        return None
    opened = ExitStack()
    return open_judge(args.eval_judge, opened, JudgeOptions()), opened


def _metrics(answered: Sequence[AnsweredRow], judged: Sequence[JudgedRow], *, need_at_length: bool) -> dict[str, float]:
    """The rates are shares of 1. The rate at equal length is left out where it would be an extrapolation.

    Args:
        need_at_length: give the lower end of its interval instead.
    """
    clusters = [digest(one.prompt) for one in answered]
    rate = rate_of(judged, clusters, confidence=0.95)
    controlled = at_equal_length(answered, judged, clusters, 0.95, 0)
    at_length: float | None = rate.win_rate  # if all answers are as long as the reference's
    if controlled is not None:
        at_length = controlled.ci_low if controlled.win_rate is None and need_at_length else controlled.win_rate
    sides = ("aligned", "base")
    tokens = [sum(getattr(one, f"{side}_tokens") for one in answered) / len(answered) for side in sides]
    values = (rate.win_rate, rate.ci_low, rate.ci_high, at_length, *tokens)
    return {name: value for name, value in zip(WIN_RATES, values, strict=True) if value is not None}
