"""Makes `eval/summary.json` and sentences from answers and outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from preftune.amounts import counted
from preftune.evaluation.two_models.advice import seen_sentence, steps_after
from preftune.evaluation.two_models.cheats import Cheat, find_cheats
from preftune.evaluation.two_models.correctness import (
    BASE_MODEL,
    KeyFactRates,
    compare_key_facts,
    correctness_verdict,
)
from preftune.evaluation.two_models.degeneration import Degeneration, compare
from preftune.judges.from_scores import ScoreJudge
from preftune.judges.protocol import Judge, decided, judge_name
from preftune.judges.text_matching import is_correct
from preftune.statistics.confidence_sequence import AnytimeInterval
from preftune.statistics.intervals import MeanInterval, Verdict, WinRate, mean_interval, power_sentence, win_rate
from preftune.statistics.length_control import LengthControlled, length_controlled
from preftune.statistics.paired import members_by
from preftune.statistics.verdict_rules import Decision, decide
from preftune.storage.jsonl import digest

if TYPE_CHECKING:
    from preftune.evaluation.two_models.types import AnsweredRow, JudgedRow

_CALLED = {"base": BASE_MODEL, "dataset": "the dataset"}
"""How a baseline of this name is called in a sentence; others are "the baseline"."""
_SUSPICIOUS = 5
"""Comparisons that are all ties from which on the judge is doubted."""
_UNJUDGED_BAR = 0.05
"""From this share of rows without a readable verdict on, the win rate is reported with a warning."""


class PositionBias(NamedTuple):
    """The outcome of the rows that were judged in both orders."""

    asked: int
    """Rows with a verdict in both orders."""
    disagreed: int
    """Rows where the judge preferred the same place both times, whatever stood there. They count as ties."""
    first_preferred: int
    """Of those, where it was the first place."""


class Rewards(NamedTuple):
    """Mean scores of a judge that gives scores, clustered by prompt."""

    base: MeanInterval
    aligned: MeanInterval
    difference: MeanInterval
    """Paired: aligned minus base."""


@dataclass(frozen=True)
class Summary:
    """The evidence about one evaluation. `to_dict` is what `eval/summary.json` holds."""

    win_rate: WinRate
    key_facts: KeyFactRates | None
    correctness: Verdict
    mean_tokens: dict[str, float]
    """Tokens per answer, `base` and `aligned`."""
    finished: dict[str, float]
    """Share of answers that ended by themselves instead of at the length limit, `base` and `aligned`."""
    thought_tokens: dict[str, float]
    """Tokens of a thinking model's thoughts per answer, which no other figure counts, `base` and `aligned`."""
    judge: str
    position_bias: PositionBias | None
    """None when every row was asked once."""
    length_controlled: LengthControlled | None
    """None when every answer has the same length as its counterpart, or there is one prompt only."""
    degeneration: Degeneration
    categories: dict[str, WinRate] = field(default_factory=dict)
    judge_only_ties: bool = False
    """Every comparison of two different answers was a tie, in both orders: suspicious."""
    unjudged: int = 0
    """Rows without a verdict that could be read. They count as ties."""
    rewards: Rewards | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    """By side: `name`, `weights` (a digest of all files that affect an answer) and `template` (SHA-256)."""
    baseline_name: str = "base"
    aligned_name: str = "aligned"
    cost: dict[str, Any] | None = None
    """Calls, tokens and money of this run at endpoints; None when there was none."""
    seen: int | None = None
    """Prompts that the aligned model was trained on, as far as that is known."""
    anytime: AnytimeInterval | None = None
    """The interval that stays valid when prompts are added, if requested; then a rule of the verdict."""
    cheats: Sequence[Cheat] = ()
    """Ways of winning without better answers that were found in the answers."""
    abilities: Mapping[str, Any] = field(default_factory=dict)
    """`budget`: the forgetting budget in points, if one was given; `compared`: figures of the suite `general`."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`method`, `beta`, `learning_rate`, `epochs` and `kl_coef` of the aligned model's run, where they are known."""

    @property
    def order_disagreements(self) -> int | None:
        """Rows where the judge contradicted itself when the answers were swapped; None when it was asked once."""
        return None if self.position_bias is None else self.position_bias.disagreed

    @cached_property
    def decision(self) -> Decision:
        """The verdict by all rules (`statistics.verdict_rules`)."""
        found = decide(self._figures())
        assert found is not None  # there is a win rate
        return found

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.decision.name, self.decision.sentence)

    def to_dict(self) -> dict[str, Any]:
        return {**self._figures(), **self.decision.to_dict(), "next_steps": self.next_steps()}

    def _figures(self) -> dict[str, Any]:
        return {
            **self.win_rate.to_dict(),
            "judge": self.judge,
            "order_disagreements": self.order_disagreements,
            "position_bias": None if self.position_bias is None else self.position_bias._asdict(),
            "unjudged": self.unjudged,
            "judge_only_ties": self.judge_only_ties,
            "length_controlled": None if self.length_controlled is None else self.length_controlled.to_dict(),
            "categories": {name: asdict(rate) for name, rate in self.categories.items()},
            "rewards": None if self.rewards is None else {k: _finite(v) for k, v in self.rewards._asdict().items()},
            "key_fact_rate": None if self.key_facts is None else self.key_facts.to_dict(),
            "mean_tokens": self.mean_tokens,
            "finished": self.finished,
            "thought_tokens": self.thought_tokens,
            "correctness_verdict": self.correctness.name,
            "correctness_sentence": self.correctness.sentence,
            "degeneration": self.degeneration.to_dict(),
            "cheats": [cheat.to_dict() for cheat in self.cheats],
            "abilities": dict(self.abilities),
            "anytime": None if self.anytime is None else self.anytime.to_dict(),
            "power": power_sentence(self.win_rate.prompts, confidence=self.win_rate.confidence),
            "baseline_name": self.baseline_name,
            "aligned_name": self.aligned_name,
            "seen_in_training": self.seen,
            "seen_sentence": seen_sentence(self.seen, self.win_rate.prompts),
            "cost": self.cost,
            "settings": self.settings,
            "evaluated": dict(self.evaluated),
        }

    def sentences(self) -> list[str]:
        """The result in plain sentences, the verdict first. Degeneration and next steps are separate."""
        lines = [self.verdict.sentence]
        n, called = self.win_rate.n, {"base": baseline_called(self.baseline_name), "aligned": "the aligned model"}
        if self.seen:
            lines.append(seen_sentence(self.seen, self.win_rate.prompts))
        if self.unjudged > _UNJUDGED_BAR * n:
            lines.append(
                f"Interpret this with care: {self.unjudged} of {counted(n, 'row')} without a readable verdict count as "
                "ties, and the interval holds for any outcome of them. Repeat them with --ask_again, or use another "
                "judge." + (" This says nothing about the models." if self.unjudged == n else "")
            )
        elif self.unjudged:
            lines.append(f"{self.unjudged} of {counted(n, 'row')} without a readable verdict count as ties.")
        if self.judge_only_ties:
            lines.append(
                f"Suspicious: {self.judge} called every comparison of two different answers a tie. Check the judge "
                "before drawing conclusions about the models."
            )
        if self.length_controlled is not None:
            lines.append(self.length_controlled.sentence())
        if self.rewards is not None:
            lines.append(_rewards_sentence(self.rewards, called["base"]))
        if self.key_facts is not None:
            lines.append(self.correctness.sentence)
        bias = self.position_bias
        if bias is not None and bias.disagreed:
            lines.append(
                f"The judge contradicted itself on {bias.disagreed} of {counted(bias.asked, 'row')} when the answers "
                f"were swapped (it preferred the first place on {bias.first_preferred} of them, the second on "
                f"{bias.disagreed - bias.first_preferred}); these count as ties."
            )
        thinking = [f"{called[side]} {tokens:,.0f}" for side, tokens in self.thought_tokens.items() if tokens]
        if thinking:
            lines.append(
                f"Reasoning before the answers ({', '.join(thinking)} tokens on average) is kept separately; judge, "
                "lengths and all other figures use only the answers (--judge_thoughts includes it)."
            )
        lines.extend(
            f"Only {self.finished[side]:.0%} of {name}'s answers ended by themselves; the others were cut at "
            "max_new_tokens, or by a filter of the server. Raise it, or check whether the model repeats itself."
            for side, name in called.items()
            if self.finished[side] < 0.9
        )
        return lines

    def next_steps(self) -> list[str]:
        """The advice for the next steps."""
        return steps_after(self._figures(), self.decision.name, **self.training)


def summarise(
    answered: Sequence[AnsweredRow],
    judged: Sequence[JudgedRow],
    rows: Sequence[Mapping[str, Any]],
    *,
    judge: Judge,
    settings: Mapping[str, Any] | None = None,
    evaluated: Mapping[str, Any] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    names: tuple[str, str] = ("base", "aligned"),
    cost: dict[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    seen: int | None = None,
    abilities: Mapping[str, Any] | None = None,
    anytime: AnytimeInterval | None = None,
) -> Summary:
    """Count outcomes, categories, right answers (when the judge can tell, `is_right`, or every row has a `key_fact`),
    lengths, what looks degenerate. Rows of one prompt are one cluster.

    Args:
        seed: of the folds that choose the penalty of the win rate at equal length.
        names: of baseline and aligned model, for people.
        cost, evaluated, training, seen, abilities, anytime: see `Summary`.
    """
    clusters = [digest(answer.prompt) for answer in answered]
    rate = rate_of(judged, clusters, confidence=confidence)
    rates = _right_answers(answered, rows, judge, clusters, confidence)
    tokens = _per_side(answered, "tokens")
    return Summary(
        win_rate=rate,
        key_facts=rates,
        correctness=correctness_verdict(
            rates, base_tokens=tokens["base"], aligned_tokens=tokens["aligned"], baseline=baseline_called(names[0])
        ),
        mean_tokens=tokens,
        finished=_per_side(answered, "finished"),
        thought_tokens=_per_side(answered, "thought_tokens"),
        judge=judge_name(judge),
        position_bias=_position_bias(judged),
        length_controlled=at_equal_length(answered, judged, clusters, confidence, seed),
        degeneration=compare(answered, confidence=confidence, baseline=baseline_called(names[0])),
        categories={
            name: rate_of(judged, clusters, members, confidence=confidence)
            for name, members in members_by([answer.category for answer in answered]).items()
        },
        judge_only_ties=_only_ties(answered, judged),
        unjudged=rate.unread,
        rewards=_rewards(answered, rows, judge, clusters, confidence),
        settings=dict(settings or {}),
        evaluated=evaluated or {},
        baseline_name=names[0],
        aligned_name=names[1],
        cost=cost,
        training=training or {},
        seen=seen,
        cheats=find_cheats(answered),
        abilities=abilities or {},
        anytime=anytime,
    )


def _per_side(answered: Sequence[AnsweredRow], field: str) -> dict[str, float]:
    """The mean of a field of the answers, for either model."""
    sides = ("base", "aligned")
    return {side: mean_interval([float(getattr(row, f"{side}_{field}")) for row in answered]).mean for side in sides}


def _only_ties(answered: Sequence[AnsweredRow], judged: Sequence[JudgedRow]) -> bool:
    """Of at least `_SUSPICIOUS` rows whose answers differ, each was judged a tie whenever it was asked."""
    different = [j for answer, j in zip(answered, judged, strict=True) if answer.base != answer.aligned]
    said = {decided(verdict) for j in different for verdict in (j.base_first, j.aligned_first)} - {None}
    return len(different) >= _SUSPICIOUS and said == {"tie"}


def _position_bias(judged: Sequence[JudgedRow]) -> PositionBias | None:
    asked = [j for j in judged if j.base_first is not None and j.aligned_first is not None]
    if not asked:
        return None
    places = [(decided(j.base_first), decided(j.aligned_first)) for j in asked]
    same = [first for first, second in places if first == second != "tie"]
    return PositionBias(len(asked), len(same), sum(first == "a" for first in same))


def _right_answers(
    answered: Sequence[AnsweredRow],
    rows: Sequence[Mapping[str, Any]],
    judge: Judge,
    clusters: Sequence[str],
    confidence: float,
) -> KeyFactRates | None:
    is_right = getattr(judge, "is_right", None)
    if is_right is None and not all(row.get("key_fact") for row in rows):
        return None
    is_right = is_right or is_correct
    return compare_key_facts(
        [is_right(answer.base, row) for answer, row in zip(answered, rows, strict=True)],
        [is_right(answer.aligned, row) for answer, row in zip(answered, rows, strict=True)],
        clusters,
        confidence=confidence,
    )


def rate_of(
    judged: Sequence[JudgedRow], clusters: Sequence[str], members: Sequence[int] | None = None, *, confidence: float
) -> WinRate:
    """The win rate of these rows, by default of all."""
    at = range(len(judged)) if members is None else members
    outcomes, unread = [judged[n].value for n in at], [judged[n].unjudged for n in at]
    return win_rate(outcomes, [clusters[n] for n in at], confidence=confidence, unread=unread)


def at_equal_length(
    answered: Sequence[AnsweredRow],
    judged: Sequence[JudgedRow],
    clusters: Sequence[str],
    confidence: float,
    seed: int,
    *,
    least: int = 0,
) -> LengthControlled | None:
    """By letters, as AlpacaEval counts: tokens of two tokenizers are no common measure. Of the rows with a verdict.

    Args:
        least: prompts below which nothing is fitted; 0: two, whose answers are not all as long as each other.
    """
    read = [number for number, one in enumerate(judged) if not one.unjudged]
    differences = [float(len(answered[n].aligned) - len(answered[n].base)) for n in read]
    names = [clusters[n] for n in read]
    if len(set(names)) < (least or 2) or not (least or any(differences)):
        return None
    outcomes = [judged[n].value for n in read]
    return length_controlled(outcomes, differences, names, confidence=confidence, seed=seed)


def baseline_called(name: str) -> str:
    """How sentences name a baseline."""
    return _CALLED.get(name, "the baseline")


def _rewards(
    answered: Sequence[AnsweredRow],
    rows: Sequence[Mapping[str, Any]],
    judge: Judge,
    clusters: Sequence[str],
    confidence: float,
) -> Rewards | None:
    """Over the rows where both answers have a score."""
    if not isinstance(judge, ScoreJudge):
        return None
    items = [
        (answer.prompt, text, row)
        for answer, row in zip(answered, rows, strict=True)
        for text in (answer.base, answer.aligned)
    ]
    scores = judge.score_all(items)
    rated = [
        (base, aligned, cluster)
        for base, aligned, cluster in zip(scores[::2], scores[1::2], clusters, strict=True)
        if base is not None and aligned is not None
    ]
    if not rated:
        return None
    names = [cluster for _, _, cluster in rated]

    def mean(values: Sequence[float]) -> MeanInterval:
        return mean_interval(values, names, confidence=confidence)

    return Rewards(
        base=mean([base for base, _, _ in rated]),
        aligned=mean([aligned for _, aligned, _ in rated]),
        difference=mean([aligned - base for base, aligned, _ in rated]),
    )


def _finite(interval: MeanInterval) -> dict[str, float | None]:
    """The numbers for JSON, which has no infinity: the interval of a single prompt is unbounded."""
    return {name: value if math.isfinite(value) else None for name, value in interval._asdict().items()}


def _rewards_sentence(rewards: Rewards, baseline: str) -> str:
    def shown(found: MeanInterval, form: str = "{:.2f}") -> str:
        return f"{form.format(found.mean)} ({form.format(found.low)} to {form.format(found.high)})"

    return (
        f"Mean reward: {shown(rewards.aligned)} for the aligned model, {shown(rewards.base)} for {baseline}; the "
        f"difference is {shown(rewards.difference, '{:+.2f}')}."
    )
