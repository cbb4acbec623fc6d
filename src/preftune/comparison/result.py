"""The result of a comparison as plain values, and its sentences and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.amounts import counted
from preftune.comparison.methods import Method
from preftune.comparison.plan import Budget, Trial, amount_in_words
from preftune.statistics.bradley_terry import Scores
from preftune.statistics.intervals import MeanInterval, WinRate, more_prompts

START = "start"
"""The name of the start model among the names of the methods."""
_COLUMNS = 3
"""Most methods for which the table has a column each; for more it has a row each."""


@dataclass(frozen=True, slots=True)
class Tried(Trial):
    """One trial, and its results on the prompts for choosing settings."""

    finished: bool
    outcome: Mapping[str, Any]
    """Facts of its training: `seconds`, `spent`, `steps`, `peak_gb`, `error`."""
    reward_outcome: Mapping[str, Any] | None
    """The same of the reward model's training; None without one."""
    used: float
    """The part of the budget that it used, with the reward model's share, in the budget's unit."""
    win_rate: WinRate | None = None
    """Win rate against the start, by the judge."""
    distance: Mapping[str, Any] | None = None
    """`kl`, `gold` and `tokens` on the same prompts."""
    chosen: bool = False

    @property
    def seconds(self) -> float:
        """Seconds of its training processes, with loading."""
        return sum(float(one["seconds"]) for one in self._stages)

    @property
    def peak_gb(self) -> float | None:
        """Peak memory of these processes, in GB of 2^30 bytes; None if it is not known."""
        peaks = [one["peak_gb"] for one in self._stages if one.get("peak_gb") is not None]
        return max(peaks, default=None)

    @property
    def _stages(self) -> list[Mapping[str, Any]]:
        return [self.outcome] if self.reward_outcome is None else [self.reward_outcome, self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "number": self.number,
            "seed": self.seed,
            "settings": self.label,
            "finished": self.finished,
            "training": dict(self.outcome),
            "reward_model": None if self.reward_outcome is None else dict(self.reward_outcome),
            "used_of_the_budget": self.used,
            "seconds": round(self.seconds, 1),
            "peak_gb": self.peak_gb,
            "win_rate_to_choose_by": None if self.win_rate is None else self.win_rate.to_dict(),
            "distance": self.distance,
            "chosen": self.chosen,
        }


@dataclass(frozen=True, slots=True)
class Final:
    """The results of a method with its chosen settings on the test prompts, over all seeds. Intervals of win rates are
    over prompts and seeds, those of means over prompts.
    """

    method: Method
    label: str
    against_start: WinRate
    per_seed: Sequence[WinRate]
    kl: MeanInterval
    gold: MeanInterval | None
    """Mean gold reward of the judged answers."""
    tokens: float
    """Mean length of an answer."""
    trials: Sequence[Tried]
    """Its trainings, one for each seed."""
    right: float | None = None
    """Share of right answers, 0 to 1; None if the prompts have no right answers."""

    @property
    def seconds(self) -> float:
        """Seconds of a training, mean over seeds."""
        return sum(trial.seconds for trial in self.trials) / len(self.trials)

    @property
    def peak_gb(self) -> float | None:
        peaks = [trial.peak_gb for trial in self.trials if trial.peak_gb is not None]
        return max(peaks, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "settings": self.label,
            "against_start": self.against_start.to_dict(),
            "per_seed": [rate.to_dict() for rate in self.per_seed],
            "kl": self.kl._asdict(),
            "gold": self.gold and self.gold._asdict(),
            "tokens": round(self.tokens, 2),
            "right": self.right,
            "seconds": round(self.seconds, 1),
            "peak_gb": self.peak_gb,
        }


@dataclass(frozen=True, slots=True)
class Duel:
    """The comparison of two methods' answers to the same prompts, over all seeds."""

    first: Method
    second: Method
    rate: WinRate
    """Win rate of the first method's answers."""
    strict: WinRate
    """The same with an interval for all duels together (Bonferroni)."""

    @property
    def ahead(self) -> Method | None:
        """The method that is significantly better; None if the interval includes 50%."""
        if self.strict.ci_low <= 0.5 <= self.strict.ci_high:
            return None
        return self.first if self.strict.ci_low > 0.5 else self.second

    def of(self, method: Method) -> WinRate:
        """The win rate of one of the two methods."""
        return self.rate if method == self.first else mirrored(self.rate)

    def other(self, method: Method) -> Method:
        return self.second if method == self.first else self.first

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first.name,
            "second": self.second.name,
            **self.rate.to_dict(),
            "ahead": self.ahead and self.ahead.name,
            "confidence_of_ahead": self.strict.confidence,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a comparison."""

    start: str
    """The model from which all methods start."""
    data: Mapping[str, Any]
    """`name`, and the numbers of rows `train`, `tune`, `test` and `held_out`."""
    budget: Budget
    judge: str
    gold: str | None
    temperature: float
    """Temperature of the judged answers; 0 for greedy decoding."""
    seeds: Sequence[int]
    tried: Sequence[Tried]
    finals: Sequence[Final]
    """Results of the methods, in the order in which they were given."""
    duels: Sequence[Duel]
    """Duels of every method with every other."""
    scores: Scores
    """Bradley-Terry scores of all methods and the start."""
    start_gold: MeanInterval | None
    start_tokens: float
    start_right: float | None
    examples: Sequence[Mapping[str, Any]] = ()
    """For each prompt its `id` and `prompt`, the `answers` of start and methods, and `outcomes` against the start."""
    reward_accuracy: float | None = None
    """Accuracy of the reward model on pairs that it was not trained on, 0 to 1."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware."""

    @property
    def methods(self) -> list[Method]:
        return [final.method for final in self.finals]

    def duels_of(self, method: Method) -> list[Duel]:
        return [duel for duel in self.duels if method in (duel.first, duel.second)]

    def verdict(self) -> str:
        """The verdict in one sentence or more. A difference is shown if the interval of the direct comparison excludes
        50%, corrected for the number of direct comparisons."""
        rank = {score.name: place for place, score in enumerate(self.scores.models)}
        best = min(self.methods, key=lambda method: rank[method.name])
        mine = self.duels_of(best)
        nearest = min(mine, key=lambda duel: duel.of(best).win_rate)
        rate, other = nearest.of(best), nearest.other(best)
        seeds = f" over {counted(len(self.seeds), 'seed')}" if len(self.seeds) > 1 else ""
        measured = (
            f"{best.title}'s answers win {rate.win_rate:.1%} against {other.title}'s (95% interval {rate.ci_low:.1%} "
            f"to {rate.ci_high:.1%}, {counted(rate.prompts, 'prompt')}{seeds}, ties counted half)"
        )
        if all(duel.ahead == best for duel in mine):
            rival = ", its nearest rival" if len(mine) > 1 else ""
            return (
                f"{best.title} is ahead: {measured}{rival}. That holds for this model, these data, this budget and "
                "this judge."
            )
        if len(mine) == 1:
            more = more_prompts(rate)
            outlook = (
                "" if more is None else (f" About {counted(more, 'more prompt')} would show a difference of this size.")
            )
            return f"No difference shown: {measured}.{outlook}"
        if all(duel.ahead is None for duel in self.duels):
            count = len(self.methods)
            return f"No difference shown: no method is shown to be better than another of the {count}. {measured}."
        even = [duel.other(best).title for duel in mine if duel.ahead is None]
        behind = [duel.other(best).title for duel in mine if duel.ahead == best]
        before = [duel.other(best).title for duel in mine if duel.ahead not in (None, best)]
        words = f"{best.title} has the best score, but no difference is shown from {_listed(even)}"
        words += f"; it is ahead of {_listed(behind)}" if behind else ""
        words += f"; it is behind {_listed(before)} in the direct comparison" if before else ""
        return f"No single winner: {words}. {measured}."

    def sentences(self) -> list[str]:
        """The verdict, a sentence for each method, and cautions."""
        lines = [self.verdict()]
        for final in self.finals:
            rate = final.against_start
            shown = "no difference from the start shown"
            if not rate.ci_low <= 0.5 <= rate.ci_high:
                shown = f"{'better' if rate.ci_low > 0.5 else 'worse'} than the start"
            lines.append(
                f"{final.method.title} ({final.label}): {rate.win_rate:.1%} against the start ({rate.ci_low:.1%} to "
                f"{rate.ci_high:.1%}), {shown}; KL {final.kl.mean:.2f} nats per answer, "
                f"{amount_in_words('seconds', final.seconds)}."
            )
        return lines + self._cautions()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a page or a terminal: a row for each metric and a column for each method; for more than
        `_COLUMNS` methods, a row for each method.
        """
        header = ["", START, *(method.title for method in self.methods)]

        def mean(value: MeanInterval | None, form: str = ".2f") -> str:
            return "" if value is None else f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"

        def each(value: Callable[[Final], str]) -> list[str]:
            return [value(final) for final in self.finals]

        rows = [["win rate against the start", "", *each(lambda f: _rated(f.against_start))]]
        if len(self.duels) == 1:
            rows.append(["win rate against each other", "", *each(lambda f: _rated(self.duels[0].of(f.method)))])
        else:
            scored = {name: f"{elo:.0f}" for name, elo in self._elo().items()}
            rows.append(["Elo, over all comparisons", scored[START], *each(lambda f: scored[f.method.name])])
        if self.start_gold is not None:
            rows.append(["gold reward", mean(self.start_gold), *each(lambda f: mean(f.gold))])
        if self.start_right is not None:
            rights = [self.start_right, *(final.right for final in self.finals)]
            rows.append(["right answers", *("" if right is None else f"{right:.1%}" for right in rights)])
        rows += [
            ["KL to the start, nats per answer", "0", *each(lambda f: mean(f.kl))],
            ["tokens per answer", f"{self.start_tokens:.0f}", *each(lambda f: f"{f.tokens:.0f}")],
            ["wall time, loading included", "", *each(lambda f: amount_in_words("seconds", f.seconds))],
            ["peak memory", "", *each(lambda f: "?" if f.peak_gb is None else f"{f.peak_gb:.2f} GB")],
            ["models trained", "", *each(lambda f: f"{len(f.method.models)}: {', '.join(f.method.models)}")],
            ["settings to tune", "", *each(lambda f: str(f.method.settings_to_tune))],
            ["trials", "", *each(lambda f: str(len([t for t in self.tried if t.method == f.method])))],
            ["settings chosen", "", *each(lambda f: f.label)],
        ]
        if len(self.finals) > _COLUMNS:
            columns = list(zip(header, *rows, strict=True))
            header, rows = [*columns[0]], [[*column] for column in columns[1:]]
        return header, rows

    def duel_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the win rates of the methods in rows against those in columns. An asterisk marks a
        significant difference."""
        rows = []
        for method in self.methods:
            cells = {duel.other(method).name: (duel.of(method), duel.ahead) for duel in self.duels_of(method)}
            row = [method.title]
            for other in self.methods:
                rate, ahead = cells.get(other.name, (None, None))
                row.append("" if rate is None else _rated(rate) + ("*" if ahead else ""))
            rows.append(row)
        return ["", *(method.title for method in self.methods)], rows

    def to_dict(self) -> dict[str, Any]:
        """The content of compare.json."""
        return {
            "verdict": self.verdict(),
            "sentences": self.sentences(),
            "start": self.start,
            "data": dict(self.data),
            "budget": {"unit": self.budget.unit, "amount": self.budget.amount},
            "judge": self.judge,
            "gold": self.gold,
            "temperature": self.temperature,
            "seeds": list(self.seeds),
            "duels": [duel.to_dict() for duel in self.duels],
            "scores": self.scores.to_dict(),
            "start_gold": self.start_gold and self.start_gold._asdict(),
            "start_tokens": round(self.start_tokens, 2),
            "start_right": self.start_right,
            "reward_model_accuracy": self.reward_accuracy,
            "methods": {final.method.name: final.to_dict() for final in self.finals},
            "trials": [trial.to_dict() for trial in self.tried],
            **self.facts,
        }

    def _elo(self) -> dict[str, float]:
        return {score.name: score.elo[0] for score in self.scores.models}

    def _cautions(self) -> list[str]:
        lines = []
        if len(self.seeds) == 1:
            lines.append("There is one seed: another one may reverse a small difference (--seeds 0 1 2).")
        elif len(self.seeds) == 2:
            lines.append("Two seeds are few for the intervals, which are over prompts and seeds; three are better.")
        failed = [f"{t.method.title} with {t.label}" for t in self.tried if not t.finished]
        if failed:
            lines.append(f"These trials did not finish, and count as trials: {'; '.join(failed)}.")
        rates = [*(duel.rate for duel in self.duels), *(final.against_start for final in self.finals)]
        unread, asked = sum(rate.unread for rate in rates), sum(rate.n for rate in rates)
        if unread:
            lines.append(
                f"{unread:,} of {counted(asked, 'verdict')} could not be read: they count as ties, and the intervals "
                "of win rates are valid for any outcome of them."
            )
        for method in self.methods:
            used = [trial.used for trial in self.tried if trial.method == method and trial.finished]
            if used and max(used) < 0.8 * self.budget.amount:
                lines.append(
                    f"{method.title} ended by itself after {amount_in_words(self.budget.unit, max(used))} of "
                    f"{self.budget.words()}; its length is set by num_train_epochs or total_episodes."
                )
            if used and max(used) > 1.2 * self.budget.amount:
                lines.append(
                    f"{method.title} used up to {amount_in_words(self.budget.unit, max(used))} of "
                    f"{self.budget.words()}: a limit is checked after whole steps and rounds. Give a larger budget, "
                    "or smaller batches."
                )
        return lines


def _rated(rate: WinRate) -> str:
    return f"{rate.win_rate:.1%} ({100 * rate.ci_low:.1f} to {100 * rate.ci_high:.1f})"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def mirrored(rate: WinRate) -> WinRate:
    """The win rate of the other side."""
    low, high = 1 - rate.ci_high, 1 - rate.ci_low
    return replace(rate, win_rate=1 - rate.win_rate, ci_low=low, ci_high=high, wins=rate.losses, losses=rate.wins)
