"""The rules from measurements to alarms. They are pure functions, and one cause is reported once.

answers   answers compared with the reference's
data      labels, copies, length, memorisation
drift     too far from the reference, too fast, or oscillating
progress  a run that does not learn
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from preftune.training.guard.alarms import Alarm
from preftune.training.guard.figures import History
from preftune.training.guard.rules import answers, data, drift, progress

Rule = Callable[[History], Alarm | None]

RULES: Mapping[str, Rule] = {
    "learning-rate-too-high": drift.learning_rate_too_high,
    "beta-too-low": drift.beta_too_low,
    "only-length-differs": data.only_length_differs,
    "duplicated-data": data.duplicated_data,
    "labels-look-random": data.labels_look_random,
    "overfitting": data.overfitting,
    "far-from-reference": drift.far_from_reference,
    "oscillating-loss": drift.oscillating_loss,
    "repetition": answers.repetition,
    "answers-alike": answers.answers_alike,
    "empty-answers": answers.empty_answers,
    "missing-eos": answers.missing_eos,
    "length-drift": answers.length_drift,
    "judged-worse": answers.judged_worse,
    "chosen-falls": drift.chosen_falls,
    "too-little-change": progress.too_little_change,
    "flat-margin": progress.flat_margin,
}
"""Rules by the name of their alarm; causes before symptoms."""

_SYMPTOMS = frozenset(RULES) - {"only-length-differs", "duplicated-data", "beta-too-low", "learning-rate-too-high"}

_NEEDS_REFERENCE = frozenset(
    [
        "learning-rate-too-high",
        "beta-too-low",
        "only-length-differs",
        "duplicated-data",
        "labels-look-random",
        "overfitting",
        "chosen-falls",
        "too-little-change",
        "flat-margin",
    ]
)
"""Rules that need rewards which measure the distance from the reference."""

COVERS: Mapping[str, AbstractSet[str]] = {
    "learning-rate-too-high": _SYMPTOMS | {"beta-too-low"},
    "beta-too-low": _SYMPTOMS | {"learning-rate-too-high"},
    "only-length-differs": {"length-drift", "missing-eos", "repetition"},
    "duplicated-data": {"overfitting"},
    "labels-look-random": {"flat-margin", "too-little-change"},
    "far-from-reference": {
        "repetition",
        "answers-alike",
        "empty-answers",
        "missing-eos",
        "length-drift",
        "chosen-falls",
    },
    "repetition": {"answers-alike", "missing-eos", "length-drift"},
    "empty-answers": {"answers-alike", "length-drift"},
    "answers-alike": {"repetition"},
    "missing-eos": {"length-drift"},
    "too-little-change": {"flat-margin"},
}
"""Alarm -> the alarms that it explains, which are not raised after it."""


def new_alarms(history: History, raised: AbstractSet[str]) -> list[Alarm]:
    """The present alarms, without those that were raised before or that another alarm explains.

    Args:
        raised: names of the alarms so far.
    """
    found: list[Alarm] = []
    covered = set(raised).union(*(COVERS.get(name, frozenset()) for name in raised))
    for name, rule in RULES.items():
        if name in covered or (name in _NEEDS_REFERENCE and not history.facts.reference):
            continue
        alarm = rule(history)
        if alarm is not None:
            found.append(alarm)
            covered |= {name} | COVERS.get(name, frozenset())
    return found


def suspicious(history: History) -> bool:
    """Whether the training metrics are suspicious, so that a look is due at once."""
    return history.facts.reference and drift.suspicious(history)
