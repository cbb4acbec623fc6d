"""The comparison: trials are trained and measured, settings chosen, other seeds trained, and answers judged. A second
call continues an interrupted comparison and repeats no finished part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from preftune.amounts import counted
from preftune.comparison.data import Row
from preftune.comparison.measure import Distance, Stored, answers_of, distance, mean_score
from preftune.comparison.methods import Method
from preftune.comparison.plan import Trial, amount_in_words, labels
from preftune.comparison.result import START, Duel, Final, Result, Tried
from preftune.comparison.trainings import Plan, Say, Trainings
from preftune.errors import ModelError, RequestError
from preftune.evaluation.two_models.run import evaluate_pairwise
from preftune.evaluation.two_models.summary import Summary
from preftune.evaluation.two_models.types import JudgedRow, outcome_word
from preftune.generation.lazy_model import ModelSource
from preftune.generation.protocol import Answer
from preftune.judges.protocol import judge_name
from preftune.judges.text_matching import is_correct
from preftune.statistics.bradley_terry import Game, bradley_terry
from preftune.statistics.intervals import WinRate, mean_interval
from preftune.statistics.over_seeds import win_rate_over_seeds
from preftune.storage.jsonl import digest, read_lines

_EXAMPLES = 24
"""Number of prompts whose answers of the first seed are part of the result."""


class Comparison:
    """One comparison."""

    def __init__(self, plan: Plan, say: Say, facts: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            say: called with a line for each step.
            facts: versions and hardware, for the result.
        """
        self.plan, self._say, self._facts = plan, say, dict(facts or {})
        self._start = ModelSource(plan.start, **plan.model)
        self._trainings = Trainings(plan, self._start, say)

    def run(self) -> Result:
        """Run all parts that an earlier call did not finish, and return the result.

        Raises: RequestError if no trial of a method finished, a training with the chosen settings failed, or a command
            refuses its settings.
        """
        first = self.plan.seeds[0]
        self._try_out()
        tried = [self._tune(trial) for trial in self._trials(first)]
        best = [self._best(method, tried) for method in self.plan.methods]
        runs: list[list[Tried]] = [[] for _ in best]
        for seed in self.plan.seeds:
            for chosen, made_of_it in zip(best, runs, strict=True):
                trial = replace(chosen, seed=seed)
                made = next((one for one in tried if one.name == trial.name), None) or self._trainings.train(trial)
                if not made.finished:
                    raise RequestError(self._unfinished(made))
                made_of_it.append(made)
        chosen_names = {trial.name for trial in best}
        tried = [replace(one, chosen=one.name in chosen_names) for one in tried]
        return self._judged(runs, tried)

    def _try_out(self) -> None:
        """Let the start model answer all prompts, and a rule judge one of each part, so that errors occur before any
        training. A model as judge is not called.
        """
        for part in ("tune", "test"):
            rows = self._rows(part)
            answers = self._answers(self._start, rows, f"start-{part}")
            if not hasattr(self.plan.judge, "judge_all"):
                self.plan.judge(rows[0]["prompt"], answers[0].text, "", rows[0])
        self._start.release()

    # --- training ---

    def _trials(self, seed: int) -> Iterator[Trial]:
        """The trials, the methods in turn, so that an early stop leaves about the same number of each."""
        for number in range(1, len(next(iter(self.plan.trials.values()))) + 1):
            for method in self.plan.methods:
                yield self._trial(method, number, seed)

    def _trial(self, method: Method, number: int, seed: int) -> Trial:
        settings = self.plan.trials[method.name]
        return Trial(method, number, settings[number - 1], seed, labels(settings, method.strength)[number - 1])

    def _tune(self, trial: Trial) -> Tried:
        made = self._trainings.train(trial)
        if not made.finished:
            self._say(self._unfinished(made))
            return made
        try:
            summary, _, _ = self._against_start(trial, "tune")
            far = self._distance(trial, "tune")
        except ModelError as error:  # training has destroyed the model, since the start has answered the same prompts
            made = replace(made, finished=False, outcome={**made.outcome, "finished": False, "error": str(error)})
            self._say(self._unfinished(made))
            return made
        gold = "" if far.gold is None else f", gold reward {far.gold.mean:.2f}"
        self._say(
            f"{trial.name} ({trial.label}): {summary.win_rate.win_rate:.1%} against the start, KL {far.kl.mean:.2f} "
            f"nats{gold}, {amount_in_words('seconds', made.seconds)}"
        )
        return replace(made, win_rate=summary.win_rate, distance=far.to_dict())

    # --- choosing and judging ---

    def _best(self, method: Method, tried: Sequence[Tried]) -> Trial:
        """The trial with the highest win rate on the prompts for choosing settings; of equals, the smallest KL."""
        known = [
            (one.win_rate.win_rate, -one.distance["kl"]["mean"], one)
            for one in tried
            if one.method == method and one.win_rate is not None and one.distance is not None
        ]
        if not known:
            raise RequestError(
                f"No trial of {method.title} finished, so there is nothing to compare. The logs are in "
                f"{self.plan.output}/trials/{method.name}-*/log.txt."
            )
        *_, best = max(known, key=lambda rated: rated[:2])
        self._say(f"chosen for {method.title}: {best.label}")
        return self._trial(method, best.number, best.seed)

    def _judged(self, runs: Sequence[Sequence[Tried]], tried: Sequence[Tried]) -> Result:
        """The result on the test prompts."""
        plan, rows = self.plan, self.plan.parts.test
        start = self._answers(self._start, rows, "start-test")
        self._start.release()
        judged = [self._method(trials, rows, start) for trials in runs]
        games = [game for one in judged for game in one.against_start.games((one.final.method.name, START))]
        duels = []
        for first, second in itertools.combinations(judged, 2):
            duel, verdicts = self._duel(first, second, of=math.comb(len(judged), 2))
            duels.append(duel)
            games += verdicts.games((duel.first.name, duel.second.name))
        return Result(
            start=plan.start,
            data={
                "name": plan.data_name,
                "train": len(plan.parts.train),
                "tune": len(plan.parts.tune),
                "test": len(rows),
                "held_out": len(plan.parts.held_out),
            },
            budget=plan.budget,
            judge=judge_name(plan.judge),
            gold=plan.gold_name,
            temperature=plan.ruler.sampling.temperature,
            seeds=plan.seeds,
            tried=tried,
            finals=[one.final for one in judged],
            duels=duels,
            scores=bradley_terry(games, anchor=START),
            start_gold=self._gold(rows, [start]),
            start_tokens=sum(answer.tokens for answer in start) / len(start),
            start_right=self._right(rows, start),
            examples=_examples(rows, start, judged),
            reward_accuracy=self._trainings.reward_accuracy(),
            facts=self._facts,
        )

    def _duel(self, first: _Judged, second: _Judged, *, of: int) -> tuple[Duel, _Verdicts]:
        """The comparison of two methods' answers, seed by seed.

        Args:
            of: number of duels in the comparison.
        """
        verdicts = _Verdicts()
        for mine, theirs, ours, others in zip(
            first.final.trials, second.final.trials, first.answers, second.answers, strict=True
        ):
            name = f"{mine.name}-against-{theirs.name}-test"
            names = (theirs.name, mine.name)
            verdicts.add(self._compared(self.plan.parts.test, others, ours, name, names)[1])
        rate, strict = verdicts.rate(0.95), verdicts.rate(1 - 0.05 / of)
        title = f"{first.final.method.title} against {second.final.method.title}"
        self._say(f"{title}: {rate.win_rate:.1%} ({rate.ci_low:.1%} to {rate.ci_high:.1%})")
        return Duel(first.final.method, second.final.method, rate, strict), verdicts

    def _method(self, trials: Sequence[Tried], rows: Sequence[Row], start: Sequence[Answer]) -> _Judged:
        """The results of one method over all seeds, against the start."""
        verdicts, answers = _Verdicts(), []
        distances: list[Distance] = []
        right: list[float] = []
        for made in trials:
            summary, judged, said = self._against_start(made, "test")
            answers.append(said)
            verdicts.add(judged)
            distances.append(self._distance(made, "test"))
            if summary.key_facts is not None:
                right.append(summary.key_facts.aligned.mean)
            self._say(
                f"{made.name} against the start, on {counted(len(rows), 'prompt')}: {summary.win_rate.win_rate:.1%}"
            )
        tokens = [answer.tokens for one in answers for answer in one]
        final = Final(
            method=trials[0].method,
            label=trials[0].label,
            against_start=verdicts.rate(0.95),
            per_seed=[verdicts.of_seed(number) for number in range(len(trials))],
            kl=_pooled(distances, rows, self.plan.ruler.samples),
            gold=self._gold(rows, answers),
            tokens=sum(tokens) / len(tokens),
            trials=trials,
            right=sum(right) / len(right) if right else None,
        )
        return _Judged(final, answers, verdicts)

    def _against_start(self, trial: Trial, part: str) -> tuple[Summary, list[JudgedRow], list[Answer]]:
        """The comparison of a trial's answers to the prompts of a part with the start's, and these answers."""
        rows, source = self._rows(part), self._source(trial)
        before = self._answers(self._start, rows, f"start-{part}")
        self._start.release()
        after = self._answers(source, rows, f"{trial.name}-{part}")
        source.release()
        name = f"{trial.name}-against-start-{part}"
        return *self._compared(rows, before, after, name, ("start", trial.name)), after

    def _compared(
        self, rows: Sequence[Row], before: Sequence[Answer], after: Sequence[Answer], name: str, names: tuple[str, str]
    ) -> tuple[Summary, list[JudgedRow]]:
        folder = self.plan.output / "eval" / name
        answers = digest([[answer.text for answer in side] for side in (before, after)])
        summary = evaluate_pairwise(
            rows,
            generate=Stored(rows, before, after),
            judge=self.plan.judge,
            output_dir=folder,
            settings={"answers": answers},
            seed=self.plan.ruler.seed,
            names=names,
            again=self.plan.again,
            judge_thoughts=self.plan.ruler.thoughts,
        )
        records = read_lines(folder / "verdicts.jsonl")
        return summary, [JudgedRow.from_dict(record) for record in records]

    def _unfinished(self, made: Tried) -> str:
        place = self.plan.output / "trials" / made.name / "log.txt"
        return f"{made.name} ({made.label}) did not finish: {made.outcome['error']} Its log is {place}."

    # --- measuring ---

    def _source(self, trial: Trial) -> ModelSource:
        return ModelSource(str(self._trainings.folder(trial)), **self.plan.model)

    def _answers(self, source: ModelSource, rows: Sequence[Row], name: str) -> list[Answer]:
        folder = self.plan.output / "answers"
        folder.mkdir(parents=True, exist_ok=True)
        return answers_of(source, rows, self.plan.ruler, folder / f"{name}.jsonl")

    def _rows(self, part: str) -> Sequence[Row]:
        return self.plan.parts.tune if part == "tune" else self.plan.parts.test

    def _distance(self, trial: Trial, part: str) -> Distance:
        file = self.plan.output / "distance" / f"{trial.name}-{part}.jsonl"
        return distance(self._source(trial), self._start, self._rows(part), self.plan.ruler, file)

    def _gold(self, rows: Sequence[Row], answers: Sequence[Sequence[Answer]]) -> Any:
        items = [(row["prompt"], answer.text, row) for one in answers for row, answer in zip(rows, one, strict=True)]
        return mean_score(self.plan.ruler.gold, items, [str(row["id"]) for row in rows] * len(answers))

    def _right(self, rows: Sequence[Row], answers: Sequence[Answer]) -> float | None:
        is_right = getattr(self.plan.judge, "is_right", None)
        if is_right is None and not all(row.get("key_fact") for row in rows):
            return None
        found = [bool((is_right or is_correct)(answer.text, row)) for row, answer in zip(rows, answers, strict=True)]
        return sum(found) / len(found)


class _Verdicts:
    """The judge's outcomes of two sides, seed by seed, on the same prompts."""

    def __init__(self) -> None:
        self.outcomes_SP: list[list[float]] = []
        self.unread_SP: list[list[bool]] = []

    def add(self, judged: Sequence[JudgedRow]) -> None:
        self.outcomes_SP.append([one.value for one in judged])
        self.unread_SP.append([one.unjudged for one in judged])

    def rate(self, confidence: float) -> WinRate:
        return win_rate_over_seeds(self.outcomes_SP, unread_SP=self.unread_SP, confidence=confidence)

    def of_seed(self, number: int) -> WinRate:
        part = slice(number, number + 1)
        return win_rate_over_seeds(self.outcomes_SP[part], unread_SP=self.unread_SP[part])

    def games(self, names: tuple[str, str]) -> list[Game]:
        return [Game(*names, outcome, prompt) for row in self.outcomes_SP for prompt, outcome in enumerate(row)]


class _Judged(NamedTuple):
    """A method's results on the test prompts."""

    final: Final
    answers: Sequence[Sequence[Answer]]
    """Answers of each seed."""
    against_start: _Verdicts


def _examples(rows: Sequence[Row], start: Sequence[Answer], judged: Sequence[_Judged]) -> list[dict[str, Any]]:
    """The first seed's answers to the first `_EXAMPLES` prompts."""
    return [
        {
            "id": str(row["id"]),
            "prompt": row["prompt"],
            "answers": {START: before.text, **{one.final.method.name: one.answers[0][n].text for one in judged}},
            "outcomes": {one.final.method.name: outcome_word(one.against_start.outcomes_SP[0][n]) for one in judged},
        }
        for n, (row, before) in enumerate(zip(rows[:_EXAMPLES], start, strict=False))
    ]


def _pooled(distances: Sequence[Distance], rows: Sequence[Row], samples: int) -> Any:
    """The mean KL over all seeds' samples, in nats per answer, clustered by prompt."""
    clusters = [str(row["id"]) for row in rows for _ in range(samples)]
    values = [ratio for one in distances for ratio in one.log_ratios]
    return mean_interval(values, clusters * len(distances))
