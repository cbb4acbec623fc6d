"""Whether one feature of the answers is enough to distinguish chosen from rejected: length, the features of `RULES`,
and the first letter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preftune.audit.checks.check import Check, Setting
from preftune.audit.finding import Finding, Kind
from preftune.audit.seen import SeenPair, answer_lengths_of
from preftune.audit.shortcuts import RULES, first_letter
from preftune.statistics.intervals import share

_NO_DECISION = 2
_FROM_HALF = 0.08
"""Least distance of the accuracy from 50% for a finding, whose interval must also exclude 50%."""
_DECIDES = 0.05
"""Least share of the pairs that the rule must decide."""
_FEWEST = 20
"""Least number of prompts that the rule must decide."""

_EFFECT = "The model can lower its loss by this feature alone, without learning what makes an answer good."


def _kind(name: str, title: str) -> Kind:
    return Kind(
        f"shortcut_{name}",
        "warning",
        title,
        _EFFECT,
        "Add pairs with the opposite pattern, or remove some of these; judge the result on answers that do not "
        "differ in it.",
    )


_TITLES = {
    "lists": "Lists",
    "markdown": "Bold type, headings and links",
    "code": "Pieces of code",
    "paragraphs": "Line breaks",
    "digits": "Digits",
    "punctuation": "Punctuation marks",
    "capitals": "Capital letters",
    "exclamations": "Exclamation marks",
    "emoji": "Emoji",
    "question": "Questions at the end",
    "refusal": "Refusals",
}

LENGTH = Kind(
    "length_bias",
    "warning",
    "Length alone distinguishes the sides",
    "The model learns to write answers of the winning length instead of better ones.",
    "preftune convert --balance-length, or --max-length-ratio 2; judge the result on answers of equal length.",
)
KINDS = {name: _kind(name, f"{_TITLES[name]} alone distinguish the sides") for name in RULES}
LETTER = _kind("first_letter", "The first letter alone distinguishes the sides")


class CheatsCheck(Check):
    """Measures the accuracy of rules that use one feature. Intervals are clustered by prompt."""

    kinds = (LENGTH, *KINDS.values(), LETTER)
    section = "cheats"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.prompt = array("Q")
        self.votes = {name: array("b") for name in ("longer", *RULES)}
        """For every pair: 1 if the chosen side has more, 0 if the rejected side has more, 2 if they are equal."""
        self.letters = array("l"), array("l")

    def take(self, seen: SeenPair) -> None:
        if not seen.usable:
            return
        self.kept.keep(seen.index, seen.row)
        self.prompt.append(seen.prompt_key)
        lengths = answer_lengths_of(seen, tokens=self.setting.encoder is not None)
        self.votes["longer"].append(_NO_DECISION if lengths is None else _vote(*lengths))
        answers = seen.answers
        for name, rule in RULES.items():
            self.votes[name].append(_vote(rule.measure(answers[0]), rule.measure(answers[1])))
        for letters, answer in zip(self.letters, answers, strict=True):
            letters.append(first_letter(answer))

    def _all_votes(self) -> Iterator[tuple[str, NDArray[np.int8]]]:
        for name, votes in self.votes.items():
            yield name, np.frombuffer(votes, dtype=np.int8)
        yield "first_letter", self._letter_votes()

    def _letter_votes(self) -> NDArray[np.int8]:
        """Guesses by the first letter, as in `votes`. How often each letter wins is learnt from half of the prompts and
        tested on the other half, and vice versa.

        If it were learnt and tested on the same pairs, thirty letters would be better than chance on random labels.
        """
        chosen, rejected = (np.frombuffer(letters, dtype=np.dtype("l")) for letters in self.letters)
        names, places = np.unique(np.concatenate([chosen, rejected]), return_inverse=True)
        ours, theirs = places[: len(chosen)], places[len(chosen) :]
        half = (np.frombuffer(self.prompt, dtype=np.uint64) >> np.uint64(17)) % np.uint64(2) == 1
        votes = np.full(len(chosen), _NO_DECISION, dtype=np.int8)
        for part in (half, ~half):
            taught = ~part
            wins = np.bincount(ours[taught], minlength=len(names))
            losses = np.bincount(theirs[taught], minlength=len(names))
            score = (wins + 1) / (wins + losses + 2)
            ahead = score[ours[part]] - score[theirs[part]]
            votes[part] = np.where(ahead > 0, 1, np.where(ahead < 0, 0, _NO_DECISION))
        return votes

    def _results(self) -> dict[str, dict[str, Any]]:
        """Rule -> its accuracy with a 95% interval, the share of pairs that it decides, and whether it is a finding."""
        prompts = np.unique(np.frombuffer(self.prompt, dtype=np.uint64), return_inverse=True)[1]
        results: dict[str, dict[str, Any]] = {}
        for name, votes in self._all_votes():
            decided = np.flatnonzero(votes != _NO_DECISION)
            if not len(decided):
                continue
            clusters = prompts[decided].tolist()
            values = votes[decided].astype(np.float64)
            found = share(values, clusters)
            # Bonferroni's correction for the number of rules
            strict = share(values, clusters, confidence=1 - 0.05 / (len(RULES) + 2))
            different = len(set(clusters))
            results[name] = {
                "what": self._words(name, more=True),
                "accuracy": found.mean,
                "low": found.low,
                "high": found.high,
                "decided": len(decided) / len(votes),
                "pairs": len(decided),
                "prompts": different,
                "cheat": bool(
                    not strict.low <= 0.5 <= strict.high
                    and abs(found.mean - 0.5) >= _FROM_HALF
                    and len(decided) >= _DECIDES * len(votes)
                    and different >= _FEWEST
                ),
            }
        return results

    def findings(self, pairs: int) -> Iterator[Finding]:
        votes = dict(self._all_votes())
        for name, result in self._results().items():
            if not result["cheat"]:
                continue
            more = result["accuracy"] > 0.5
            rows = self.kept.rows(np.flatnonzero(votes[name] == int(more)))
            detail = _sentence(result, self._words(name, more=more), more=more)
            yield from _KIND_OF[name].found(rows, of=pairs, detail=detail, **result)

    def _words(self, name: str, *, more: bool) -> str:
        if name == "longer":
            return f"{'more' if more else 'fewer'} {self.setting.unit}"
        if name == "first_letter":
            return "the first letter that wins more often" if more else "the first letter that wins less often"
        return RULES[name].more if more else RULES[name].less

    def figures(self) -> Mapping[str, Any]:
        return self._results()


_KIND_OF = {"longer": LENGTH, "first_letter": LETTER, **KINDS}


def _vote(chosen: float, rejected: float) -> int:
    return _NO_DECISION if chosen == rejected else int(chosen > rejected)


def _sentence(result: Mapping[str, Any], words: str, *, more: bool) -> str:
    rate = result["accuracy"] if more else 1 - result["accuracy"]
    low, high = (result["low"], result["high"]) if more else (1 - result["high"], 1 - result["low"])
    return (
        f"The answer with {words} is the chosen one in {rate:.0%} of the pairs where the sides differ in it "
        f"(95% interval {low:.0%} to {high:.0%}); they do in {result['decided']:.0%} of all pairs."
    )
