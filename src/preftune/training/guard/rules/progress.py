"""Rules for a run that makes no progress: the weights hardly change, or they change without effect on the margin."""

from __future__ import annotations

from preftune.amounts import counted
from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import History, pooled

LITTLE = 0.5
"""Root mean square of the margins below which the policy has hardly changed, in nats. Rounding in half precision causes
as much."""

AFTER = 1 / 3
"""Share of the run after which the margins should be larger."""

STEPS = 10

FLAT_AFTER = 0.5

FLAT_LOSS = 0.9
"""Share of the first loss above which the loss counts as unchanged."""

FLAT_ACCURACY = 0.65

FLAT_PAIRS = 64


def too_little_change(history: History) -> Alarm | None:
    """After a third of the run, the policy has hardly moved from the reference."""
    facts = history.facts
    if history.step < max(STEPS, AFTER * facts.steps):
        return None
    now = history.last_steps(min(STEPS, max(1, history.step // 4)))
    if now is None or now.margin_rms > LITTLE:
        return None
    usual = "5e-7 to 5e-6" if facts.full else "5e-6 to 5e-5, up to 3e-4 for few pairs"
    or_beta = "; a lower beta also lets the policy move further" if facts.beta > 0.05 and facts.usual_beta else ""
    return history.alarm(
        "too-little-change",
        level=NOTE,
        seen=f"After {history.step} of {counted(facts.steps, 'step')} chosen and rejected are {now.margin_rms:.2g} "
        f"nats further apart than before training; the loss is {now.loss:.4f}.",
        cause=f"The weights hardly move: learning_rate={facts.learning_rate:g}, beta={facts.beta:g}, "
        f"{now.pairs / now.steps:.0f} pairs per step.",
        remedy=f"Raise the learning rate within its range ({usual}), or train on more and better pairs{or_beta}.",
        figures={"margin_rms": now.margin_rms, "loss": now.loss},
    )


def flat_margin(history: History) -> Alarm | None:
    """The weights change, but the margin does not grow and the loss does not fall."""
    facts = history.facts
    if history.step < max(2 * STEPS, FLAT_AFTER * facts.steps):
        return None
    half = history.step / 2
    earlier = pooled([glance for glance in history.glances if half / 2 < glance.step <= half])
    later = pooled([glance for glance in history.glances if glance.step > 1.5 * half])
    if earlier is None or later is None or min(earlier.pairs, later.pairs) < FLAT_PAIRS or later.margin_rms < LITTLE:
        return None
    grew = later.margin - earlier.margin > 2 * (later.margin_error**2 + earlier.margin_error**2) ** 0.5
    standing = later.loss > FLAT_LOSS * history.glances[0].loss and later.accuracy < FLAT_ACCURACY
    if grew or not standing:
        return None
    return history.alarm(
        "flat-margin",
        level=NOTE,
        seen=f"The reward margin is {facts.beta * later.margin:.2g} (it was "
        f"{facts.beta * earlier.margin:.2g}), and {later.accuracy:.0%} of the pairs are ranked correctly; the "
        f"loss is {later.loss:.3f}.",
        cause="The model learns little from the pairs, although its weights change: labels disagree, or sides hardly "
        "differ.",
        remedy="Improve the pairs (preftune audit; drop those whose answers are nearly the same); a lower beta or a "
        "longer run helps only if the margin rises at all.",
        figures={"margin": later.margin, "earlier": earlier.margin, "accuracy": later.accuracy, "loss": later.loss},
    )
