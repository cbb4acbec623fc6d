"""Agreement of a judge with people, with intervals, and the two usual biases of judges.

Position bias: the judge prefers a place, whatever stands there. Length bias: it takes the longer answer more often than
people do. Each figure has an interval clustered by prompt. Judges and figures after Zheng et al. 2023
(arXiv:2306.05685, sections 3.3 and 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from preftune.amounts import counted
from preftune.errors import DatasetError
from preftune.judges.people.labels import HumanLabel
from preftune.judges.protocol import (
    Judge,
    Judgement,
    Progress,
    Question,
    decided,
    judge_all,
    judge_name,
    swapped_verdict,
)
from preftune.judges.text_matching import count_words
from preftune.statistics.clusters import Floats, clustered, number_clusters
from preftune.statistics.intervals import MeanInterval, paired_shares, share
from preftune.storage.jsonl import digest

_RESAMPLES = 2000
_POINTS: Mapping[Judgement, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}
_FEW = 100
"""Judgements below which the interval alone says that more are needed."""


class Judged(NamedTuple):
    """One label, and what the judge said in each order."""

    label: HumanLabel
    there: Judgement | None
    """With answer a in the first place; None when no verdict could be read."""
    back: Judgement | None
    """The verdict on the same answers in the other order, in terms of the first order: "a" is still answer a."""

    @property
    def verdict(self) -> Judgement | None:
        """Both orders together: they must agree, or it is a tie. None where one could not be read."""
        if self.there is None or self.back is None:
            return None
        return self.there if self.there == self.back else "tie"


class Rate(NamedTuple):
    """A share with its interval, and of how many."""

    value: float
    ci_low: float
    ci_high: float
    n: int

    @classmethod
    def of(cls, interval: MeanInterval, n: int) -> Rate:
        return cls(interval.mean, interval.low, interval.high, n)


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge compared with people. Rates are shares of 1; None where there was nothing to measure."""

    judge: str
    n: int
    """Judgements with a verdict."""
    prompts: int
    unjudged: int
    """Judgements without: one order or both could not be read."""
    agreement: Rate
    """A tie against a preference counts half: a judge that tosses coins, or only says tie, has 50%."""
    decided: Rate | None
    """Where both people and the judge prefer one: how often the same."""
    judge_ties: float
    human_ties: float
    kappa: Rate
    """Cohen's kappa over a, b and tie; each row counts in both orders: it does not matter which stands first."""
    longer_rule: Rate
    """The agreement of "the longer answer wins", which reads nothing."""
    above_longer: Rate
    """The judge's agreement minus that, row by row."""
    contradicted: Rate | None
    """The same place preferred in both orders; None for a judge that is asked once."""
    wavered: float | None
    """One order a tie, the other not."""
    first_place: Rate | None
    """Of the verdicts that prefer one, in either order: the first place; 50% without bias."""
    judge_longer: Rate | None
    """Of the judge's preferences between answers of different length: the longer."""
    human_longer: Rate | None
    """The same of people's."""
    length_bias: Rate | None
    """Judge minus people, on rows where both prefer one."""
    on_longer: Rate | None
    """Agreement where people preferred the longer answer."""
    on_shorter: Rate | None
    """Agreement where people preferred the shorter answer."""
    two_people: Rate | None
    """How often two annotators of the same row say the same: no judge can be asked for much more."""
    person_and_label: float | None
    """Mean share of annotators who agree with the label, their own votes being part of it."""
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in self.__slots__}
        return {name: value._asdict() if isinstance(value, Rate) else value for name, value in kept.items()}

    def sentences(self) -> list[str]:
        """The result in words, and what to do about it."""
        lines = [self._headline(), *self._warnings()]
        if len(lines) == 1:
            lines.append("No position or length bias is shown, and it is better than the length of the answers.")
        return lines

    def _headline(self) -> str:
        ceiling = "" if self.two_people is None else f"; two people agree in {self.two_people.value:.1%}"
        return (
            f"The judge {self.judge!r} agrees with people in {self.agreement.value:.1%} of "
            f"{counted(self.n, 'comparison')} ({self._interval(self.agreement)}, ties counted half{ceiling}). Taking "
            f"the longer answer agrees in {self.longer_rule.value:.1%}."
        )

    def _warnings(self) -> list[str]:
        lines = []
        if self.agreement.ci_high < 0.5:
            lines.append(
                "It contradicts people in most comparisons: either it misreads the question, or chosen and rejected "
                "are swapped in these data."
            )
        elif self.agreement.ci_low <= 0.5:
            lines.append(
                "That is not shown to be better than tossing a coin: do not use this judge for this data"
                + (", or try it on more judgements." if self.n < _FEW and self.agreement.ci_high > 0.5 else ".")
            )
        elif self.judge_ties == 1:
            lines.append(
                "It prefers no answer in any comparison, so it cannot distinguish two models, and its agreement comes "
                "only from ties: use another judge."
            )
        elif self.above_longer.ci_low <= 0:
            lines.append(
                "That is not shown to be better than taking the longer answer: use a stronger judge, or try it on more "
                "judgements."
            )
        if self.contradicted is not None and self.contradicted.value >= CONTRADICTING:
            lines.append(
                f"Position bias: it contradicts itself in {self.contradicted.value:.0%} of the comparisons when the "
                "answers are swapped. These count as ties: more prompts are needed, fewer with a stronger judge."
            )
        if self.first_place is not None and not self.first_place.ci_low <= 0.5 <= self.first_place.ci_high:
            place = "first" if self.first_place.value > 0.5 else "second"
            lines.append(
                f"It prefers the {place} place ({self.first_place.value:.0%} of its preferences are for the first, "
                f"{self._interval(self.first_place)}). preftune always asks in both orders, which removes this bias."
            )
        if self.length_bias is not None and self.judge_longer is not None and self.human_longer is not None:
            if self.length_bias.ci_low > 0:
                lines.append(
                    f"Length bias: it takes the longer answer in {self.judge_longer.value:.0%} of its preferences, "
                    f"people in {self.human_longer.value:.0%}. Use the length-controlled win rate."
                )
            elif self.length_bias.ci_high < 0:
                lines.append(
                    f"It takes the shorter answer more often than people do (the longer one in "
                    f"{self.judge_longer.value:.0%} of its preferences, people in {self.human_longer.value:.0%})."
                )
        if self.unjudged:
            lines.append(
                f"{counted(self.unjudged, 'comparison')} without a readable verdict left out; --ask_again repeats them."
            )
        return lines

    def _interval(self, rate: Rate) -> str:
        return f"{self.confidence:.0%} interval {rate.ci_low:.1%} to {rate.ci_high:.1%}"


def questions_of(labels: Sequence[HumanLabel], judge: Judge) -> list[Question]:
    """All that a judge is asked: both orders of every two answers, or one if the judge is symmetric."""
    asked: list[Question] = []
    for label in labels:
        question = Question(label.prompt, label.answer_a, label.answer_b, label.row)
        asked += [question] if getattr(judge, "symmetric", False) else [question, question.swapped]
    return asked


def judge_labels(
    labels: Sequence[HumanLabel], judge: Judge, *, again: bool = False, progress: Progress | None = None
) -> list[Judged]:
    """What the judge says of every two answers. It does not see the label.

    Args:
        again, progress: see `protocol.judge_all`.
    """
    verdicts = iter(judge_all(judge, questions_of(labels, judge), again=again, progress=progress))
    judged = []
    for label in labels:
        there = next(verdicts)
        back = there if getattr(judge, "symmetric", False) else swapped_verdict(next(verdicts))
        judged.append(Judged(label, decided(there), decided(back)))
    return judged


def agreement(judged: Sequence[Judged], judge: Judge, *, confidence: float = 0.95, seed: int = 0) -> Agreement:
    """The figures of a judge. Judgements of one prompt are one cluster of every interval.

    Args:
        seed: of the resamples for kappa's interval.
    Raises: DatasetError when no verdict could be read.
    """
    read = [item for item in judged if item.verdict is not None]
    if not read:
        raise DatasetError(
            f"No verdict of {judge_name(judge)} could be read, so no agreement can be measured. Try a stronger model, "
            "or a higher --judge_max_tokens."
        )
    clusters = [digest(item.label.prompt) for item in read]
    rate = partial(_rate, clusters, confidence)
    people = np.array([_POINTS[item.label.label] for item in read])
    points = np.array([_POINTS[item.verdict] for item in read if item.verdict is not None])
    longer = np.array([_longer(item.label) for item in read])
    agrees, by_length = 1 - np.abs(points - people), 1 - np.abs(longer - people)
    both = (points != 0.5) & (people != 0.5)
    uneven = longer != 0.5
    symmetric = bool(getattr(judge, "symmetric", False))
    return Agreement(
        judge=judge_name(judge),
        n=len(read),
        prompts=len(set(clusters)),
        unjudged=len(judged) - len(read),
        agreement=Rate.of(share(agrees, clusters, confidence=confidence), len(read)),
        decided=rate(agrees, both),
        judge_ties=float((points == 0.5).mean()),
        human_ties=float((people == 0.5).mean()),
        kappa=_kappa(points, people, clusters, confidence, seed),
        longer_rule=Rate.of(share(by_length, clusters, confidence=confidence), len(read)),
        above_longer=Rate.of(paired_shares(by_length, agrees, clusters, confidence=confidence), len(read)),
        contradicted=None if symmetric else rate(np.array([{item.there, item.back} == {"a", "b"} for item in read])),
        wavered=None if symmetric else float(np.mean([(i.there == "tie") != (i.back == "tie") for i in read])),
        first_place=None if symmetric else _first_place(read, clusters, confidence),
        judge_longer=rate(1 - np.abs(points - longer), uneven & (points != 0.5)),
        human_longer=rate(1 - np.abs(people - longer), uneven & (people != 0.5)),
        length_bias=rate(1 - np.abs(points - longer), uneven & both, less=1 - np.abs(people - longer)),
        on_longer=rate(agrees, uneven & (people != 0.5) & (people == longer)),
        on_shorter=rate(agrees, uneven & (people != 0.5) & (people != longer)),
        two_people=_two_people(read, confidence),
        person_and_label=_person_and_label(read),
        confidence=confidence,
    )


def _rate(
    clusters: Sequence[Hashable], confidence: float, values: Any, where: Any = None, *, less: Any = None
) -> Rate | None:
    """A share of some of the rows, or a difference of shares.

    Args:
        less: other values of the same rows, whose share is subtracted.
    """
    rows = np.arange(len(values)) if where is None else np.flatnonzero(where)
    if not len(rows):
        return None
    names, kept = [clusters[row] for row in rows.tolist()], np.asarray(values, dtype=np.float64)[rows]
    if less is not None:
        return Rate.of(paired_shares(less[rows], kept, names, confidence=confidence), len(rows))
    return Rate.of(share(kept, names, confidence=confidence), len(rows))


def _longer(label: HumanLabel) -> float:
    """1 when answer a has more words, 0 when b has, 0.5 when they are as long."""
    a, b = count_words(label.answer_a), count_words(label.answer_b)
    return 0.5 if a == b else float(a > b)


def _first_place(read: Sequence[Judged], clusters: Sequence[Hashable], confidence: float) -> Rate | None:
    """Answer a stands first in one order and second in the other."""
    values, names = [], []
    for item, name in zip(read, clusters, strict=True):
        for verdict, first in ((item.there, "a"), (item.back, "b")):
            if verdict != "tie":
                values.append(float(verdict == first))
                names.append(name)
    return Rate.of(share(values, names, confidence=confidence), len(values)) if values else None


def _two_people(read: Sequence[Judged], confidence: float) -> Rate | None:
    voted = [item.label for item in read if len(item.label.votes) > 1]
    if not voted:
        return None
    same = [float(np.mean([a == b for a, b in combinations(label.votes, 2)])) for label in voted]
    return Rate.of(share(same, [digest(label.prompt) for label in voted], confidence=confidence), len(voted))


def _person_and_label(read: Sequence[Judged]) -> float | None:
    shares = [item.label.agreement for item in read if item.label.agreement is not None]
    return float(np.mean(shares)) if shares else None


def _kappa(points: Floats, people: Floats, clusters: Sequence[Hashable], confidence: float, seed: int) -> Rate:
    """Cohen's kappa with a percentile interval from 2,000 resamples of prompts.

    Resamples of few prompts vary too little, and more so if some hold most of the judgements: both ends move away from
    kappa by the ratio of the clustered t interval to the plain one (Hesterberg 2015, The American Statistician 69,
    "expanded percentiles").
    Where judge and people always say the same, or never, resamples show no spread; the interval is then that of the
    share of equal verdicts, in units of kappa.
    """
    index, prompts = number_clusters(len(points), clusters)
    rows_NK = np.stack([np.ones_like(points), points == people, points == 0.5, people == 0.5], axis=1)
    sums_GK = np.zeros((prompts, 4))
    np.add.at(sums_GK, index, rows_NK)
    drawn = np.random.default_rng(seed).integers(0, prompts, size=(_RESAMPLES, prompts))
    resampled = np.array([sums_GK[rows].sum(axis=0) for rows in drawn])
    low, high = np.quantile(_kappa_of(resampled), [0.5 - confidence / 2, 0.5 + confidence / 2])
    value = float(_kappa_of(sums_GK.sum(axis=0)[None])[0])
    wider = _few_clusters(_kappa_influence(rows_NK), clusters, confidence)
    low, high = max(-1.0, value - wider * (value - low)), min(1.0, value + wider * (high - value))
    matches = share(rows_NK[:, 1], clusters, confidence=confidence)
    if prompts < 2:
        low, high = -1.0, 1.0
    elif matches.mean in (0.0, 1.0):
        sums_K = sums_GK.sum(axis=0)
        low, high = _kappa_of(np.stack([[sums_K[0], end * sums_K[0], *sums_K[2:]] for end in matches[1:3]]))
    return Rate(value, min(float(low), value), max(float(high), value), len(points))


def _kappa_of(sums_BK: Floats) -> Floats:
    """From rows, matches, the judge's ties and people's ties; half of what is no tie falls to a, half to b."""
    rows, matches, judge, people = sums_BK.T
    judge, people, seen = judge / rows, people / rows, matches / rows
    expected = judge * people + (1 - judge) * (1 - people) / 2
    kappa: Floats = np.where(expected < 1, (seen - expected) / np.maximum(1 - expected, 1e-12), 1.0)
    return kappa


def _kappa_influence(rows_NK: Floats) -> Floats:
    """By how much each row moves kappa, times the number of rows: the derivative of `_kappa_of`."""
    _, seen, judge, people = rows_NK.mean(axis=0)
    expected = judge * people + (1 - judge) * (1 - people) / 2
    of_ties = np.array([(3 * people - 1) / 2, (3 * judge - 1) / 2])
    away_NK = rows_NK - rows_NK.mean(axis=0)
    if expected == 1:
        return np.zeros(len(rows_NK))
    found_N: Floats = (away_NK[:, 1] - (1 - seen) / (1 - expected) * (away_NK[:, 2:] @ of_ties)) / (1 - expected)
    return found_N


def _few_clusters(influence_N: Floats, clusters: Sequence[Hashable], confidence: float) -> float:
    """How much wider the clustered t interval is than the one that resampling of clusters approaches."""
    data = clustered(influence_N, clusters)
    plain = math.sqrt(float(np.square(data.sums_G).sum())) / len(influence_N)
    if plain == 0:
        return 1.0
    normal = NormalDist().inv_cdf(0.5 + confidence / 2)
    return max(1.0, data.uncertainty(confidence).width(confidence) / (normal * plain))


CONTRADICTING = 0.2
"""Share of comparisons in which a judge contradicts itself, or gives no verdict, that is worth a better judge."""
