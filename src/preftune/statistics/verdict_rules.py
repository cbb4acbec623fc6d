"""The rules of an evaluation's verdict, all of them, on the figures of `eval/summary.json`.

A win rate alone can be bought: with length, with correct facts that are lost, with text that is written for the judge.
The verdict is "better" only if every rule holds. The terminal, summary.json, the report, the model card and the exit
code of `--fail_under` call `decide`; older summaries, which lack some figures, are decided by those that they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from preftune.statistics.intervals import WinRate, verdict
from preftune.statistics.verdict_names import (
    BELOW_BAR,
    BETTER,
    CHEAT,
    DEGENERATE,
    FORGETFUL,
    LESS_CORRECT,
    LONGER,
    SHORTER,
    UNDECIDED,
    WORSE,
    level_of,
)
from preftune.storage.untrusted_json import at, items, number

FACTS_MARGIN = 0.03
"""Share of correct answers that may be lost: fewer is a loss even where it may be chance."""
RATE_MARGIN = 0.03
"""Share of answers that may newly loop, not end, be empty or leave the language, if it is more than chance."""
MEAN_MARGIN = 0.10
"""The same for distinct-2 and self-similarity, means between 0 and 1."""
FORGETTING_BUDGET = 2.0
"""Points of accuracy that a general ability may lose; for bits per byte, percent."""

_DEGENERATE = {
    "repeats": (RATE_MARGIN, "answers repeat themselves"),
    "unfinished": (RATE_MARGIN, "answers do not end"),
    "empty": (RATE_MARGIN, "answers are empty"),
    "language_switch": (RATE_MARGIN, "answers leave the language of the prompt"),
    "distinct_2": (MEAN_MARGIN, "answers are less varied"),
    "self_similarity": (MEAN_MARGIN, "answers to different prompts are more alike"),
}
_OUTCOMES = {True: "holds", False: "fails", None: "not measured"}


Tone: TypeAlias = Literal["good", "bad", "unsure"]


class Rule(NamedTuple):
    """One rule, and how it came out."""

    name: str
    passed: bool | None
    """None where it was not measured, which does not prevent "better" unless the rule was requested."""
    sentence: str
    """The rule with its numbers."""
    verdict: str = ""
    """The verdict where it fails."""

    def line(self) -> str:
        """The rule, how it came out, and its numbers."""
        return f"{self.name}: {_OUTCOMES[self.passed]}. {self.sentence}"


class Decision(NamedTuple):
    """The verdict, and the rules that led to it."""

    name: str
    sentence: str
    rules: tuple[Rule, ...]

    @property
    def tone(self) -> Tone:
        """For colours."""
        return "good" if self.level == 4 else "bad" if self.level < 2 else "unsure"

    @property
    def level(self) -> int:
        """As `level_of`: the lowest of the verdict and of all rules that fail."""
        return min(level_of(self.name), *(level_of(rule.verdict) for rule in self.rules if rule.passed is False), 4)

    @property
    def grounds(self) -> str:
        """What the level comes from: the verdict, and the rules of a lower level that fail."""
        lower = [
            rule.name for rule in self.rules if rule.passed is False and level_of(rule.verdict) < level_of(self.name)
        ]
        return f"{self.name!r}" + (f", but these rules fail: {', '.join(lower)}" if lower else "")

    def to_dict(self) -> dict[str, Any]:
        """The part of summary.json."""
        return {
            "verdict": self.name,
            "verdict_sentence": self.sentence,
            "rules": [rule._asdict() for rule in self.rules],
        }


@dataclass(frozen=True, slots=True)
class _Span:
    """A figure with its interval, as far as it is known."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def read(cls, figures: Any, *names: str) -> _Span | None:
        value, low, high = (number(at(figures, name)) for name in names)
        return None if value is None else cls(value, low, high)

    def points(self) -> str:
        """A difference of shares in points."""
        interval = "" if self.low is None or self.high is None else f", interval {_p(self.low)} to {_p(self.high)}"
        return f"{_p(self.value)} points{interval}"


def decide(figures: Mapping[str, Any]) -> Decision | None:
    """The verdict on the figures of a summary; None if they hold no win rate.

    Args:
        figures: of `summary.json`. Nothing in it is trusted to be there or to have its type.
    """
    rate = win_rate_in(figures)
    if rate is None:
        return None
    plain = verdict(rate)
    rules = tuple(_rules(figures, rate))
    failed = [rule for rule in rules if rule.passed is False]
    cheats = [rule for rule in failed if rule.name == "no cheat"]
    if not failed:
        return Decision(plain.name, plain.sentence, rules)
    measured = plain.sentence.partition(": ")[0].partition("). ")[0].rstrip(".")
    measured += ")" * (measured.count("(") - measured.count(")"))
    reasons = " ".join(rule.sentence for rule in failed if rule.name != "win rate")
    if cheats:
        return Decision(cheats[0].verdict, f"{measured}, which does not count: {reasons}", rules)
    if plain.name not in (BETTER, BELOW_BAR):  # what prevents better is not what decides here, but it is said
        return Decision(plain.name, f"{plain.sentence} {reasons}".rstrip(), rules)
    worst = min(failed, key=lambda rule: level_of(rule.verdict))
    return Decision(worst.verdict, f"{measured}, but that is not enough: {reasons}", rules)


def _rules(figures: Mapping[str, Any], rate: WinRate) -> Iterator[Rule]:
    """All rules; of failed ones with verdicts of the same level, the first decides."""
    yield _no_cheat(figures)
    interval = f"{rate.confidence:.0%} interval {rate.ci_low:.1%} to {rate.ci_high:.1%}"
    yield Rule(
        "win rate",
        rate.ci_low > 0.5,
        f"The interval of the win rate must lie above 50%: {rate.win_rate:.1%} ({interval}).",
        WORSE if rate.ci_high < 0.5 else UNDECIDED,
    )
    if figures.get("anytime") is not None:
        yield _repeated_looks(figures)
    yield _equal_length(figures)
    yield _facts(figures)
    yield _degeneration(figures)
    yield _abilities(figures)


def _repeated_looks(figures: Mapping[str, Any]) -> Rule:
    """Requested with `--anytime`: more prompts may be added until it holds."""
    low, high = (number(at(figures, "anytime", end)) for end in ("ci_low", "ci_high"))
    if low is None or high is None:
        return Rule("repeated looks", False, "The evaluation holds no interval for repeated looks.", UNDECIDED)
    sentence = (
        "The interval that stays valid when prompts are added until it excludes 50% must lie above 50%: "
        f"{low:.1%} to {high:.1%}."
    )
    return Rule("repeated looks", low > 0.5, sentence, UNDECIDED)


def _no_cheat(figures: Mapping[str, Any]) -> Rule:
    cheats = [one for one in items(figures.get("cheats")) if isinstance(one, Mapping) and at(one, "name")]
    if figures.get("cheats") is None:
        return Rule("no cheat", None, "The evaluation is one of an earlier version.")
    if not cheats:
        return Rule("no cheat", True, "No known cheat was found in the answers.")
    names = " and ".join(str(one["name"]) for one in cheats)
    sentence = " ".join(str(at(one, "sentence") or "") for one in cheats)
    return Rule("no cheat", False, sentence, f"{CHEAT}: {names}")


def _equal_length(figures: Mapping[str, Any]) -> Rule:
    """Not below 50% at equal length. Where nearly all answers are longer, or shorter, no rate can be estimated, and
    only checkable answers that got better show that it is not length alone."""
    name, controlled = "equal length", figures.get("length_controlled")
    base, aligned = (number(at(figures, "mean_tokens", side)) for side in ("base", "aligned"))
    side = "shorter" if base is not None and aligned is not None and aligned < base else "longer"
    failing = SHORTER if side == "shorter" else LONGER
    if not isinstance(controlled, Mapping):
        return Rule(name, None, "There are too few prompts, or no different lengths, for a rate at equal length.")
    if at(controlled, "extrapolated"):
        facts = _Span.read(at(figures, "key_fact_rate", "difference"), "rate", "ci_low", "ci_high")
        shown = facts is not None and facts.low is not None and facts.low > 0
        no_rate = f"Nearly all answers are {side}, so no rate at equal length can be estimated"
        if shown:
            return Rule(
                name, True, f"{no_rate}; more of the answers are correct, so length alone does not explain the wins."
            )
        return Rule(name, False, f"{no_rate}, and its advantage may be length alone.", failing)
    equal = _Span.read(controlled, "win_rate", "ci_low", "ci_high")
    if equal is None or equal.low is None or equal.high is None:
        return Rule(name, None, "The evaluation holds no rate at equal length.")
    rates = f"{equal.value:.1%} (interval {equal.low:.1%} to {equal.high:.1%})"
    if equal.high < 0.5:
        return Rule(name, False, f"At equal length it would win only {rates}: it is only {side}.", failing)
    return Rule(name, True, f"The interval of the win rate at equal length must not lie below 50%: {rates}.")


def _facts(figures: Mapping[str, Any]) -> Rule:
    name = "correct answers"
    change = _Span.read(at(figures, "key_fact_rate", "difference"), "rate", "ci_low", "ci_high")
    if change is None:
        return Rule(name, None, "The rows hold nothing to check.")
    shown = change.high is not None and change.high < 0
    if change.value < -FACTS_MARGIN or shown:
        return Rule(
            name,
            False,
            f"Fewer answers are correct: {change.points()}; at most {100 * FACTS_MARGIN:g} may be lost.",
            LESS_CORRECT,
        )
    return Rule(name, True, f"Correct answers may fall by at most {100 * FACTS_MARGIN:g} points: {change.points()}.")


def _degeneration(figures: Mapping[str, Any]) -> Rule:
    name, found = "degeneration", at(figures, "degeneration", "figures")
    if not isinstance(found, Mapping):
        return Rule(name, None, "The evaluation holds no figures of degeneration.")
    worse = items(at(figures, "degeneration", "worse"))
    spoilt = []
    for figure, (margin, words) in _DEGENERATE.items():
        change = _Span.read(found.get(figure), "difference", "ci_low", "ci_high")
        if figure in worse and change is not None and abs(change.value) > margin:
            before, after = (number(at(found, figure, side)) for side in ("base", "aligned"))
            spoilt.append(f"{words} ({_share(after)} instead of {_share(before)})")
    if spoilt:
        return Rule(name, False, f"The answers degenerate: {', '.join(spoilt)}.", DEGENERATE)
    return Rule(
        name,
        True,
        f"No sign of degeneration may rise by more than {RATE_MARGIN:.0%} of the answers and beyond chance: none does.",
    )


def _abilities(figures: Mapping[str, Any]) -> Rule:
    """General abilities within the budget. The estimate decides, and the sentence names its interval."""
    name = "general abilities"
    asked = number(at(figures, "abilities", "budget"))
    budget = FORGETTING_BUDGET if asked is None else asked
    found = [one for one in items(at(figures, "abilities", "compared")) if isinstance(one, Mapping)]
    losses = [(str(one.get("name")), loss) for one in found if (loss := _loss(one)) is not None]
    if not losses:
        if asked is None:
            return Rule(name, None, "preftune eval --suite general measures them.")
        sentence = (
            "General abilities were not measured (preftune eval --suite general), so the forgetting budget of "
            f"{asked:g} points cannot be confirmed."
        )
        return Rule(name, False, sentence, UNDECIDED)
    changes = "; ".join(f"{what} {_lost(loss)}" for what, loss in losses)
    if any(loss.value > budget for _, loss in losses):
        sentence = f"General abilities fell by more than the forgetting budget of {budget:g} points: {changes}."
        return Rule(name, False, sentence, FORGETFUL)
    return Rule(name, True, f"General abilities may lose {budget:g} points: {changes}.")


def _loss(figure: Mapping[str, Any]) -> _Span | None:
    """What an ability lost, in points; in percent of the baseline where it is no share."""
    change, base = _Span.read(figure, "difference", "ci_low", "ci_high"), number(figure.get("base"))
    if change is None or base is None or (figure.get("unit") != "share" and base <= 0):
        return None
    scale = 100.0 if figure.get("unit") == "share" else 100.0 / base
    if figure.get("better") != "lower":
        low = None if change.high is None else -scale * change.high
        return _Span(-scale * change.value, low, None if change.low is None else -scale * change.low)
    low, high = (None if end is None else scale * end for end in (change.low, change.high))
    return _Span(scale * change.value, low, high)


def _lost(loss: _Span) -> str:
    interval = "" if loss.low is None or loss.high is None else f" (interval {loss.low:+.1f} to {loss.high:+.1f})"
    return f"lost {loss.value:+.1f}{interval}"


def win_rate_in(figures: Mapping[str, Any]) -> WinRate | None:
    """The win rate of a summary; None if it holds none."""
    rate, low, high = (number(figures.get(name)) for name in ("win_rate", "ci_low", "ci_high"))
    if rate is None or low is None or high is None:
        return None
    wins, ties, losses, n, prompts, unread = (
        int(number(figures.get(name)) or 0) for name in ("wins", "ties", "losses", "n", "prompts", "unread")
    )
    n = max(1, n or wins + ties + losses)
    spread = number(figures.get("spread"))
    confidence = number(figures.get("confidence")) or 0.95
    confidence = confidence if 0 < confidence < 1 else 0.95
    rate = min(1.0, max(0.0, rate))
    return WinRate(
        rate, low, high, n, wins, ties, losses, prompts or n, 0.5 if spread is None else spread, confidence, unread
    )


def _p(value: float) -> str:
    return f"{100 * value:+.1f}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"
