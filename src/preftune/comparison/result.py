"""What came out of a comparison, as plain values, and the sentences that say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.comparison.plan import METHODS, MODELS, NAMES, SHORT, TUNED, Budget, Method, amount_in_words
from preftune.statistics.intervals import MeanInterval, WinRate, more_prompts


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial, and how it did on the prompts that settings are chosen by."""

    method: Method
    number: int
    seed: int
    label: str
    finished: bool
    outcome: Mapping[str, Any]
    """Of its training: `seconds`, `spent`, `steps`, `peak_gb`, `error`."""
    reward_outcome: Mapping[str, Any] | None
    """Of the reward model's training, for PPO."""
    used: float
    """Of the budget, the reward model's share included."""
    win_rate: WinRate | None = None
    """Against the start, by the judge."""
    distance: Mapping[str, Any] | None = None
    """`kl`, `gold`, `tokens` on the same prompts."""
    chosen: bool = False

    @property
    def name(self) -> str:
        """The trial's."""
        return f"{self.method}-{self.number}-seed{self.seed}"

    @property
    def seconds(self) -> float:
        """Of all processes that it needs, loading included."""
        return sum(float(one["seconds"]) for one in self._stages)

    @property
    def peak_gb(self) -> float | None:
        """The most memory that any of them held."""
        peaks = [one["peak_gb"] for one in self._stages if one.get("peak_gb") is not None]
        return max(peaks, default=None)

    @property
    def _stages(self) -> list[Mapping[str, Any]]:
        return [self.outcome] if self.reward_outcome is None else [self.reward_outcome, self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
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
    """A method with the settings that were chosen, on the prompts that nothing was chosen by, over all seeds."""

    method: Method
    label: str
    against_start: WinRate
    per_seed: Sequence[WinRate]
    kl: MeanInterval
    gold: MeanInterval | None
    """Of the answers that were judged."""
    tokens: float
    """Mean length of an answer."""
    trials: Sequence[Tried]
    """Its trainings, one for each seed."""
    right: float | None = None
    """Share of right answers, where the prompts say what is right."""
    unread: int = 0
    """Verdicts against the start that could not be read, and count as ties."""

    @property
    def seconds(self) -> float:
        """Of a training, mean over seeds."""
        return sum(trial.seconds for trial in self.trials) / len(self.trials)

    @property
    def peak_gb(self) -> float | None:
        peaks = [trial.peak_gb for trial in self.trials if trial.peak_gb is not None]
        return max(peaks, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "settings": self.label,
            "against_start": self.against_start.to_dict(),
            "per_seed": [rate.to_dict() for rate in self.per_seed],
            "kl": self.kl._asdict(),
            "gold": self.gold and self.gold._asdict(),
            "tokens": round(self.tokens, 2),
            "right": self.right,
            "unread_verdicts": self.unread,
            "seconds": round(self.seconds, 1),
            "peak_gb": self.peak_gb,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A whole comparison."""

    start: str
    """The model that both methods start from."""
    data: Mapping[str, Any]
    """`name`, and how many `train`, `tune`, `test` rows."""
    budget: Budget
    judge: str
    gold: str | None
    temperature: float
    """Of the answers that are judged; 0: the likeliest token."""
    seeds: Sequence[int]
    tried: Sequence[Tried]
    finals: Mapping[Method, Final]
    head_to_head: WinRate
    """DPO's answers against PPO's."""
    start_gold: MeanInterval | None
    start_tokens: float
    start_right: float | None
    examples: Sequence[Mapping[str, Any]] = ()
    """`prompt` and the answers of `start`, `dpo`, `ppo`, with both outcomes."""
    reward_accuracy: float | None = None
    """Of the reward model, on pairs that it was not trained on."""
    unread: int = 0
    """Verdicts of the direct comparison that could not be read, and count as ties."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware."""

    def verdict(self) -> str:
        """In a sentence. A difference counts as shown where the interval of the direct comparison leaves out 50%: the
        intervals of the two win rates, p and 1 - p, then do not overlap."""
        rate = self.head_to_head
        ahead: Method = "dpo" if rate.win_rate >= 0.5 else "ppo"
        share, low, high = rate.win_rate, rate.ci_low, rate.ci_high
        if ahead == "ppo":
            share, low, high = 1 - share, 1 - high, 1 - low
        other = SHORT["ppo" if ahead == "dpo" else "dpo"]
        seeds = f" over {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        measured = (
            f"{SHORT[ahead]}'s answers win {share:.1%} against {other}'s (95% interval {low:.1%} to {high:.1%}, "
            f"{rate.prompts:,} prompts{seeds}, ties counted half)"
        )
        if low > 0.5:
            return (
                f"{SHORT[ahead]} is ahead: {measured}. That holds for this model, these data, this budget and this "
                "judge."
            )
        more = more_prompts(rate)
        outlook = "" if more is None else f" About {more:,} more prompts would show a difference of this size."
        return f"No difference shown: {measured}.{outlook}"

    def sentences(self) -> list[str]:
        """The verdict, what each method reached, and what should be known besides."""
        lines = [self.verdict()]
        for method in METHODS:
            final = self.finals[method]
            rate = final.against_start
            shown = "no difference from the start shown"
            if not rate.ci_low <= 0.5 <= rate.ci_high:
                shown = f"{'better' if rate.ci_low > 0.5 else 'worse'} than the start"
            lines.append(
                f"{NAMES[method]} ({final.label}): {rate.win_rate:.1%} against the start ({rate.ci_low:.1%} to "
                f"{rate.ci_high:.1%}), {shown}; KL {final.kl.mean:.2f} nats an answer, "
                f"{amount_in_words('seconds', final.seconds)}."
            )
        lines += self._cautions()
        return lines

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows for a page and a terminal: a row for each figure, a column for each method."""
        header = ["", "start", *(SHORT[method] for method in METHODS)]
        finals = [self.finals[method] for method in METHODS]

        def rated(rate: WinRate) -> str:
            return f"{rate.win_rate:.1%} ({100 * rate.ci_low:.1f} to {100 * rate.ci_high:.1f})"

        def mean(value: MeanInterval | None, form: str = ".2f") -> str:
            return "" if value is None else f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"

        rows = [["win rate against the start", "", *(rated(final.against_start) for final in finals)]]
        rows.append(["win rate against each other", "", rated(self.head_to_head), rated(mirrored(self.head_to_head))])
        if self.start_gold is not None:
            rows.append(["gold reward", mean(self.start_gold), *(mean(final.gold) for final in finals)])
        if self.start_right is not None:
            rights = [self.start_right, *(final.right for final in finals)]
            rows.append(["right answers", *("" if right is None else f"{right:.1%}" for right in rights)])
        rows += [
            ["KL to the start, nats an answer", "0", *(mean(final.kl) for final in finals)],
            ["tokens an answer", f"{self.start_tokens:.0f}", *(f"{final.tokens:.0f}" for final in finals)],
            ["wall time, loading included", "", *(amount_in_words("seconds", final.seconds) for final in finals)],
            ["peak memory", "", *("?" if f.peak_gb is None else f"{f.peak_gb:.2f} GB" for f in finals)],
            ["models trained", "", *(f"{len(MODELS[m])}: {', '.join(MODELS[m])}" for m in METHODS)],
            ["settings to tune", "", str(len(TUNED["dpo"])), str(len(TUNED["reward"]) + len(TUNED["ppo"]))],
            ["trials", "", *(str(len([t for t in self.tried if t.method == m])) for m in METHODS)],
            ["settings chosen", "", *(final.label for final in finals)],
        ]
        return header, rows

    def to_dict(self) -> dict[str, Any]:
        """What compare.json holds."""
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
            "dpo_against_ppo": self.head_to_head.to_dict(),
            "unread_verdicts": self.unread,
            "start_gold": self.start_gold and self.start_gold._asdict(),
            "start_tokens": round(self.start_tokens, 2),
            "start_right": self.start_right,
            "reward_model_accuracy": self.reward_accuracy,
            "methods": {method: final.to_dict() for method, final in self.finals.items()},
            "trials": [trial.to_dict() for trial in self.tried],
            **self.facts,
        }

    def _cautions(self) -> list[str]:
        lines = []
        if len(self.seeds) == 1:
            lines.append("One seed: another one may turn a small difference round (--seeds 0 1 2).")
        else:
            lines.append("The intervals are over prompts; the seeds are too few for an interval of their own.")
        failed = [f"{SHORT[t.method]} with {t.label}" for t in self.tried if not t.finished]
        if failed:
            lines.append(f"Did not finish, and counts as a trial: {'; '.join(failed)}.")
        rates = [(self.head_to_head, self.unread), *((one.against_start, one.unread) for one in self.finals.values())]
        unread, asked = sum(count for _, count in rates), sum(rate.n for rate, _ in rates)
        if unread:
            lines.append(
                f"{unread:,} of {asked:,} verdicts could not be read: they count as ties, and the intervals of "
                "win rates hold whatever they would have been."
            )
        for method in METHODS:
            used = [trial.used for trial in self.tried if trial.method == method and trial.finished]
            if used and max(used) < 0.8 * self.budget.amount:
                lines.append(
                    f"{SHORT[method]} ended by itself after {amount_in_words(self.budget.unit, max(used))} of "
                    f"{self.budget.words()}; its settings say how long (num_train_epochs, total_episodes)."
                )
            if used and max(used) > 1.2 * self.budget.amount:
                lines.append(
                    f"{SHORT[method]} used up to {amount_in_words(self.budget.unit, max(used))} of "
                    f"{self.budget.words()}: a limit is checked after whole steps and rounds. Give a larger budget, "
                    "or smaller batches."
                )
        return lines


def mirrored(rate: WinRate) -> WinRate:
    """The same comparison from the other side."""
    low, high = 1 - rate.ci_high, 1 - rate.ci_low
    return replace(rate, win_rate=1 - rate.win_rate, ci_low=low, ci_high=high, wins=rate.losses, losses=rate.wins)
