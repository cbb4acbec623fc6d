"""Rules for a policy that leaves the reference too fast or too far, or oscillates."""

from __future__ import annotations

import math

from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import Facts, Glance, History

FEW_PAIRS = 8
"""Least pairs of a measurement: a single unusual pair must not raise an alarm."""

COLLAPSE = 1.0
"""Loss of the chosen answers in nats per token that counts as a collapse: a token is e times less probable than under
the reference. Alignment costs some tenths at most; in the healthy runs of the tests the chosen answers gain."""

LOSS_TIMES = 3.0
"""Multiple of the loss of the first steps. New pairs cost this much only if the policy is certain of the wrong side of
many."""

SURE = 1.0
"""Root mean square of the reward margins above which a pair's gradient falls, so that smaller steps would slow the
policy down."""

UNSATISFIED = 0.1
"""Root mean square of the reward margins below which the loss has hardly changed: by 0.05 nats at most."""

APART = 8.0
"""Root mean square of the margins, in nats: odds of three thousand to one on whole answers."""

APART_PER_TOKEN = 0.2
"""Nats per token that at least one side must have moved too, because the margins of long answers are larger."""

FAR = 0.7
"""KL in nats per token at which a token of the reference's answers is half as probable as it was."""

FALLEN = 0.5
"""Loss of the chosen answers in nats per token that causes a note."""

SWING = 2.0
"""Change of the loss from step to step that counts as oscillating: times the square root of the pairs in a step,
because chance changes a mean over more pairs less; and divided by the first loss over ln 2, or by 1 if that is more,
because a loss that starts near 0 has no scale."""

_ENOUGH_STEPS = 8


def learning_rate_too_high(history: History) -> Alarm | None:
    """The chosen answers have become improbable, or the loss is far above that of the first steps, although the margins
    are so large that the loss counteracts them.
    """
    now, start = history.last_pairs(FEW_PAIRS), _start(history)
    if now is None or start is None or history.facts.beta * now.margin_rms < SURE:
        return None
    lost = now.chosen_per_token <= -COLLAPSE
    wrong = now.loss >= LOSS_TIMES * start.loss
    if not (lost or wrong):
        return None
    facts = history.facts
    seen = f"The loss went from {start.loss:.2f} to {now.loss:.2f}"
    if lost:
        seen = (
            f"A token of the chosen answers is {_times(-now.chosen_per_token)} less probable than before training "
            f"({now.chosen_per_token:.1f} nats), and the loss is {now.loss:.2f} (at the start {start.loss:.2f})"
        )
    look = history.look
    if look is not None and look.looping:
        seen += f"; {_of(look.looping, look.answers)} of the policy's answers are repetitive"
    return history.alarm(
        "learning-rate-too-high",
        seen=f"{seen}.",
        cause=f"The steps are too large: learning_rate={facts.learning_rate:g}.",
        remedy="Start again with a lower one: halve it first, and if the alarm comes this early, divide it by ten. "
        f"Usual are {_usual_rates(facts)}.",
        figures={
            "chosen_per_token": now.chosen_per_token,
            "loss": now.loss,
            "loss_at_start": start.loss,
            "margin_rms": now.margin_rms,
        },
    )


def beta_too_low(history: History) -> Alarm | None:
    """The margins are large in nats, but times beta so small that the loss keeps increasing them."""
    now = history.last_pairs(FEW_PAIRS)
    facts = history.facts
    if now is None or not facts.usual_beta:
        return None
    per_token = max(abs(now.chosen_per_token), abs(now.rejected_per_token))
    if now.margin_rms < APART or per_token < APART_PER_TOKEN or facts.beta * now.margin_rms > UNSATISFIED:
        return None
    return history.alarm(
        "beta-too-low",
        seen=f"Chosen and rejected are {now.margin_rms:.0f} nats further apart than before training, and the loss is "
        f"still {now.loss:.2f}.",
        cause=f"With beta={facts.beta:g} the loss requires about {2 / facts.beta:,.0f} nats, so nothing keeps the "
        "policy close to the reference: its answers will become repetitive or meaningless.",
        remedy="Raise beta: 0.1 is a usual start, 0.2 to 0.5 against repetition."
        if facts.beta < 0.2
        else "Halve the learning rate, and raise beta to 0.5.",
        figures={"margin_rms": now.margin_rms, "loss": now.loss, "beta": facts.beta, "per_token": per_token},
    )


def far_from_reference(history: History) -> Alarm | None:
    """The KL to the reference, measured on the reference's answers, is larger than alignment needs."""
    look, facts = history.look, history.facts
    if look is None or look.kl_per_token is None or look.kl_per_token - 2 * (look.kl_error or 0.0) < FAR:
        return None
    return history.alarm(
        "far-from-reference",
        seen=f"The policy is {look.kl_per_token:.2f} nats per token away from the reference (KL on the reference's "
        f"own answers): a token of the reference is now {_times(look.kl_per_token)} less probable.",
        cause=f"{facts.too_free[0].upper()}{facts.too_free[1:]}.",
        remedy=facts.hold_back,
        figures={"kl_per_token": look.kl_per_token, "kl_error": look.kl_error or 0.0},
    )


def chosen_falls(history: History) -> Alarm | None:
    """The chosen answers have become much less probable."""
    now = history.last_pairs(4 * FEW_PAIRS)
    if now is None or now.chosen_per_token > -FALLEN:
        return None
    return history.alarm(
        "chosen-falls",
        level=NOTE,
        seen=f"The chosen answers lost {-now.chosen_per_token:.2f} nats per token, the rejected ones "
        f"{-now.rejected_per_token:.2f}.",
        cause="The margin grows because both sides become less probable, and other text becomes more probable.",
        remedy="Check the samples. If they are worse than the reference's: "
        f"{history.facts.hold_back[0].lower()}{history.facts.hold_back[1:]}",
        figures={"chosen_per_token": now.chosen_per_token, "rejected_per_token": now.rejected_per_token},
    )


def oscillating_loss(history: History) -> Alarm | None:
    """The loss changes from step to step by more than chance explains."""
    now, start = history.last_steps(_ENOUGH_STEPS), _start(history)
    if now is None or start is None:
        return None
    per_step = now.pairs / now.steps
    swing = now.loss_change * math.sqrt(per_step) / max(1.0, start.loss / math.log(2))
    if swing < SWING or now.loss_change < 0.5 * now.loss:
        return None
    return history.alarm(
        "oscillating-loss",
        seen=f"The loss changes by {now.loss_change:.2f} from one step to the next, with {per_step:.0f} pairs in each; "
        f"its mean is {now.loss:.2f}.",
        cause=f"Every step overshoots: learning_rate={history.facts.learning_rate:g} is too high for so few pairs.",
        remedy="Halve the learning rate, keep max_grad_norm at 1, or raise gradient_accumulation_steps.",
        figures={"loss_change": now.loss_change, "loss": now.loss, "pairs_per_step": per_step},
    )


def suspicious(history: History) -> bool:
    """Whether the last pairs reach half of the thresholds of `learning_rate_too_high`."""
    now, start = history.last_pairs(FEW_PAIRS), _start(history)
    if now is None or start is None:
        return False
    return now.chosen_per_token <= -COLLAPSE / 2 or now.loss >= 1.5 * start.loss


def _start(history: History) -> Glance | None:
    """The glance of the first steps; None without one, or if its loss is not above 0."""
    return history.glances[0] if history.glances and history.glances[0].loss > 0 else None


def _times(nats: float) -> str:
    """The factor of probability that is this many nats, as text."""
    factor = math.exp(min(nats, 14.0))
    if factor >= 1e5:
        return "more than 100,000 times"
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"


def _of(share: float, count: int) -> str:
    return f"{round(share * count)} of {count}"


def _usual_rates(facts: Facts) -> str:
    return "5e-7 to 5e-6 for full fine-tuning" if facts.full else "5e-6 to 5e-5 for adapters (up to 3e-4 for few pairs)"
