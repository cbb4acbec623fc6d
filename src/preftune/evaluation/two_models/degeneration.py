"""Degeneration of answers by alignment: loops, sameness, length, missing ends, language, refusals.

Read from texts alone. `look_at` measures one answer; `compare` sets two models side by side on the same prompts, each
figure with the interval of its paired difference, and names the prompts that show it worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preftune.amounts import counted
from preftune.evaluation.two_models.correctness import BASE_MODEL
from preftune.evaluation.two_models.types import AnsweredRow
from preftune.generation.protocol import SIDES, Side
from preftune.statistics.intervals import mean_interval, share
from preftune.storage.jsonl import digest
from preftune.text_quality.languages import change_of_language
from preftune.text_quality.single_answer import likeness, look_at
from preftune.types import Text

_ROUNDING = 1e-9
"""Differences of means that count as zero."""
_WORST = 5
"""Prompts that are named per figure."""


class Kind(NamedTuple):
    """One figure of a comparison, and its sentence."""

    name: str
    verb: str
    """"The aligned model" + this + "12% of its answers"; "" for a mean, which `sentence` tells."""
    better: str | None
    """`lower`, `higher`, or None where neither is better by itself."""
    sentence: str = ""


KINDS = (
    Kind("repeats", "repeats itself in", "lower"),
    Kind("unfinished", "does not end", "lower"),
    Kind("empty", "leaves empty", "lower"),
    Kind("language_switch", "leaves the language of the prompt in", "lower"),
    Kind("refusals", "refuses in", None),
    Kind("distinct_2", "", "higher", "Word pairs are {more} varied (distinct-2 {aligned:.2f} instead of {base:.2f}"),
    Kind(
        "self_similarity",
        "",
        "lower",
        "Answers to different prompts are {more} alike (self-similarity {aligned:.3f} instead of {base:.3f}",
    ),
    Kind("repeated", "", "lower"),
    Kind("words", "", None),
    Kind("tokens", "", None),
)
"""Shares of answers first (repeats, unfinished, empty, language_switch, refusals), then means."""
_KIND = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of both models and the paired difference, aligned minus base, with its interval clustered by prompt."""

    base: float
    aligned: float
    difference: float
    ci_low: float
    ci_high: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.ci_low > _ROUNDING or self.ci_high < -_ROUNDING

    def within_rates(self) -> Compared:
        """The interval cut where no difference of two rates can be; one that is not known stays so."""
        if not math.isfinite(self.ci_low) or not math.isfinite(self.ci_high):
            return self
        return replace(self, ci_low=max(-1.0, self.ci_low), ci_high=min(1.0, self.ci_high))

    def to_dict(self) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


class Shown(NamedTuple):
    """A prompt that shows a figure."""

    id: str
    prompt: Text
    base: str
    aligned: str


@dataclass(frozen=True, slots=True)
class Degeneration:
    """Two models' answers to the same prompts, figure by figure. `to_dict` goes into `eval/summary.json`."""

    n: int
    """Rows."""
    prompts: int
    """Distinct prompts."""
    figures: Mapping[str, Compared]
    """By name of `KINDS`; `self_similarity` only of several prompts."""
    worst: Mapping[str, Sequence[Shown]]
    """Up to five prompts per figure where the aligned model shows it and the base does not, or less; worst first."""
    confidence: float = 0.95
    baseline: str = BASE_MODEL
    """The name of the baseline in sentences."""

    @property
    def worse(self) -> list[str]:
        """Names of the figures in which the aligned model is worse by more than chance."""
        return [name for name in self.figures if self._is_worse(name) and self.figures[name].shown]

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "prompts": self.prompts,
            "confidence": self.confidence,
            "figures": {
                name: {**compared.to_dict(), "better": _KIND[name].better} for name, compared in self.figures.items()
            },
            "worse": self.worse,
            "worst": {name: [shown._asdict() for shown in found] for name, found in self.worst.items()},
            "sentences": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """What a person should know, what got worse first; one sentence that nothing was found, if so."""
        found = {name: sentence for name in self.figures if (sentence := self._sentence(name))}
        lines = [found[name] for name in sorted(found, key=lambda name: not self._is_worse(name))]
        if not any(self._is_worse(name) for name in found):
            lines.insert(
                0,
                f"No sign of degeneration in {counted(self.n, 'answer')}: no more repetition, sameness, emptiness or "
                f"change of language than in {self.baseline}'s.",
            )
        return lines

    def _is_worse(self, name: str) -> bool:
        compared, better = self.figures[name], _KIND[name].better
        return compared.difference * {"lower": 1, "higher": -1, None: 0}[better] > 1e-12

    def _sentence(self, name: str) -> str:
        kind, compared = _KIND[name], self.figures[name]
        if name == "tokens":
            return self._length_sentence()
        if not kind.verb:
            if not kind.sentence or not compared.shown:
                return ""
            more = "more" if compared.difference > 0 else "less"
            text = kind.sentence.format(more=more, aligned=compared.aligned, base=compared.base)
            return f"{text}; {self.confidence:.0%} interval of the difference {_interval(compared, '{:+.3f}')})."
        if not compared.shown and (compared.difference <= 0 or kind.better is None):
            return ""
        chance = "" if compared.shown else ", a difference that can be chance"
        worst = self.worst.get(name, ())
        example = f"; worst: {excerpt(worst[0].prompt)}" if worst and compared.difference > 0 else ""
        into = "in " if kind.verb.endswith(" in") else ""
        return (
            f"The aligned model {kind.verb} {compared.aligned:.0%} of its answers, {self.baseline} {into}"
            f"{compared.base:.0%} (difference {_points(compared)}{chance}{example})."
        )

    def _length_sentence(self) -> str:
        compared = self.figures["tokens"]
        if not compared.shown:
            return ""
        change = f"{compared.aligned / compared.base - 1:+.0%}" if compared.base else "from nothing"
        return (
            f"Answers have {compared.aligned:.0f} tokens instead of {compared.base:.0f} ({change}; "
            f"{self.confidence:.0%} interval of the difference {_interval(compared, '{:+.1f}')})."
        )


def excerpt(prompt: Text, *, length: int = 60) -> str:
    """The beginning of a prompt in quotation marks, on one line; of a conversation its last turn.

    Without what a terminal would obey instead of showing it.
    """
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""
    text = "".join(character for character in " ".join(text.split()) if character.isprintable())
    short = text if len(text) <= length else text[: length - 1].rstrip() + "\u2026"
    return f"\u201c{short}\u201d"


def _interval(compared: Compared, form: str) -> str:
    if not math.isfinite(compared.ci_low):
        return "unknown"
    return f"{form.format(compared.ci_low)} to {form.format(compared.ci_high)}"


def _points(compared: Compared) -> str:
    low, high = 100 * compared.ci_low, 100 * compared.ci_high
    interval = f", interval {low:+.0f} to {high:+.0f}" if math.isfinite(low) else ""
    return f"{100 * compared.difference:+.0f} points{interval}"


def compare(answered: Sequence[AnsweredRow], *, confidence: float = 0.95, baseline: str = BASE_MODEL) -> Degeneration:
    """The answers of two models to the same prompts. Rows with the same prompt are one cluster of every interval.

    Args:
        baseline: its name in sentences.
    """
    clusters = [digest(row.prompt) for row in answered]
    sides = [_Side(answered, side) for side in SIDES]
    figures: dict[str, Compared] = {}
    worst: dict[str, list[Shown]] = {}
    first = [clusters.index(name) for name in dict.fromkeys(clusters)]
    for kind in KINDS:
        rows = first if kind.name == "self_similarity" else list(range(len(answered)))
        before, after = (side.values(kind.name, rows) for side in sides)
        if before is None or after is None:
            continue
        compared = _compared(kind, before, after, [clusters[row] for row in rows], confidence)
        figures[kind.name] = compared if kind.name in ("words", "tokens") else compared.within_rates()
        if kind.better is None and not kind.verb:
            continue
        harm = (after - before) * (-1 if kind.better == "higher" else 1)
        order = [int(place) for place in np.argsort(-harm, kind="stable")[:_WORST] if harm[place] > 1e-12]
        shown = [answered[rows[place]] for place in order]
        found = [Shown(row.id, row.prompt, row.base, row.aligned) for row in shown]
        if found:
            worst[kind.name] = found
    return Degeneration(len(answered), len(first), figures, worst, confidence, baseline)


def _compared(
    kind: Kind, before: NDArray[np.float64], after: NDArray[np.float64], clusters: Sequence[str], confidence: float
) -> Compared:
    difference = mean_interval(after - before, clusters, confidence=confidence)
    # Values that are means over pairs of rows are a U-statistic of degree two: each row counts in its own value and in
    # all others', which doubles the standard error (Hoeffding 1948).
    half = (difference.high - difference.mean) * (2 if kind.name == "self_similarity" else 1)
    low, high = difference.mean - half, difference.mean + half
    if kind.verb and difference.standard_error == 0 and difference.mean != 0 and len(set(clusters)) > 1:
        # All changed alike, be it two answers: no spread was measured, and Wilson's interval knows how few they are.
        alike = share((1 + after - before) / 2, clusters, confidence=confidence)
        low, high = 2 * alike.low - 1, 2 * alike.high - 1
    return Compared(float(before.mean()), float(after.mean()), difference.mean, low, high)


class _Side:
    """The answers of one model, and their figures by name."""

    def __init__(self, answered: Sequence[AnsweredRow], side: Side) -> None:
        self._prompts = [row.prompt for row in answered]
        self._answers: list[str] = [getattr(row, side) for row in answered]
        self._tokens: list[int] = [getattr(row, f"{side}_tokens") for row in answered]
        ended = (getattr(row, f"{side}_finished") for row in answered)
        self._figures = [look_at(text, finished=end) for text, end in zip(self._answers, ended, strict=True)]

    def values(self, name: str, rows: Sequence[int]) -> NDArray[np.float64] | None:
        """One number per row; None where one row has no number."""
        if name == "self_similarity":
            return likeness([self._answers[row] for row in rows]) if len(rows) > 1 else None
        if name == "tokens":
            return np.array([self._tokens[row] for row in rows], dtype=np.float64)
        if name == "language_switch":
            return np.array([float(self._left_its_language(row)) for row in rows])
        found = [getattr(self._figures[row], _FIELDS.get(name, name)) for row in rows]
        return np.array([float(not value if name == "unfinished" else value) for value in found])

    def _left_its_language(self, row: int) -> bool:
        prompt = self._prompts[row]
        asked = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "") if prompt else ""
        return change_of_language(asked, self._answers[row]) is not None


_FIELDS = {"unfinished": "finished", "refusals": "refusal"}
"""Of `TextFigures`, where a figure has another name."""
