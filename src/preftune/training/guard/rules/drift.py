"""The policy leaves the reference: too fast, too far, or to and fro."""

from __future__ import annotations

import math

from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import Facts, Glance, History

FEW_PAIRS = 8
"""Figures of fewer pairs are not used: one odd pair is no reason for an alarm."""

COLLAPSE = 1.0
"""Nats per token that the chosen answers lost: each token is e times less likely than to the reference. Alignment costs
the chosen answers some tenths at most; the healthy runs recorded here gain."""

LOSS_TIMES = 3.0
"""Times the loss before the first step. Pairs that were not trained on cost as much only if the policy is sure of the
wrong side of many."""

SURE = 1.0
"""Beta times nats by which pairs are apart, root mean square. From here on a pair's gradient falls, so the loss itself
would hold the policy back, were its steps not so large."""

UNSATISFIED = 0.1
"""Beta times nats below which the loss does not notice that pairs are apart: it has fallen by a twentieth at most."""

APART = 8.0
"""Nats by which pairs are apart: odds of three thousand to one on whole answers."""

APART_PER_TOKEN = 0.2
"""Nats per token that go with it on at least one side, so that long answers may be apart by more."""

FAR = 0.7
"""KL per token, in nats: of the reference's own words every one is half as likely as it was."""

FALLEN = 0.5
"""Nats per token that the chosen answers lost: worth a note."""

SWING = 2.0
"""Change of the loss from step to step that counts as oscillating, times the root of the pairs in a step, in units of
the first loss over ln 2, of 1 at least (a loss that begins near 0 has no scale): a step's loss strays by chance, the
less the more pairs it has."""

_ENOUGH_STEPS = 8


def learning_rate_too_high(history: History) -> Alarm | None:
    """Within a few steps the chosen answers become unlikely, or the loss is far above what guessing costs, although the
    loss pulls back with all its strength.
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
            f"A token of the chosen answers is {_times(-now.chosen_per_token)} less likely than before training "
            f"({now.chosen_per_token:.1f} nats), and the loss is {now.loss:.2f} (at the start {start.loss:.2f})"
        )
    look = history.look
    if look is not None and look.looping:
        seen += f"; {_of(look.looping, look.answers)} of its answers are repetitive"
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
    """Pairs are far apart, and the loss has not noticed: nothing holds the policy near the reference."""
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
    """The distance to the reference, measured on the reference's own answers, is beyond what alignment needs."""
    look, facts = history.look, history.facts
    if look is None or look.kl_per_token is None or look.kl_per_token - 2 * (look.kl_error or 0.0) < FAR:
        return None
    return history.alarm(
        "far-from-reference",
        seen=f"The policy is {look.kl_per_token:.2f} nats per token away from the reference (KL on the reference's "
        f"own answers): a token of the reference is now {_times(look.kl_per_token)} less likely.",
        cause=f"{facts.too_free[0].upper()}{facts.too_free[1:]}, to hold it.",
        remedy=facts.hold_back,
        figures={"kl_per_token": look.kl_per_token, "kl_error": look.kl_error or 0.0},
    )


def chosen_falls(history: History) -> Alarm | None:
    """The margin grows while the chosen answers, too, become less likely."""
    now = history.last_pairs(4 * FEW_PAIRS)
    if now is None or now.chosen_per_token > -FALLEN:
        return None
    return history.alarm(
        "chosen-falls",
        level=NOTE,
        seen=f"The chosen answers lost {-now.chosen_per_token:.2f} nats per token, the rejected ones "
        f"{-now.rejected_per_token:.2f}.",
        cause="The margin grows because both sides become less likely, and other text becomes more likely.",
        remedy="Check the samples. If they are worse than the reference's: "
        f"{history.facts.hold_back[0].lower()}{history.facts.hold_back[1:]}",
        figures={"chosen_per_token": now.chosen_per_token, "rejected_per_token": now.rejected_per_token},
    )


def oscillating_loss(history: History) -> Alarm | None:
    """The loss goes up and down from step to step by more than chance does."""
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
    """Half of what an alarm takes, in the last pairs."""
    now, start = history.last_pairs(FEW_PAIRS), _start(history)
    if now is None or start is None:
        return False
    return now.chosen_per_token <= -COLLAPSE / 2 or now.loss >= 1.5 * start.loss


def _start(history: History) -> Glance | None:
    """The first steps: with a warm-up, what the loss is before anything is learnt."""
    return history.glances[0] if history.glances and history.glances[0].loss > 0 else None


def _times(nats: float) -> str:
    """The factor that nats of log-probability are, in words."""
    factor = math.exp(min(nats, 14.0))
    if factor >= 1e5:
        return "more than 100,000 times"
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"


def _of(share: float, count: int) -> str:
    return f"{round(share * count)} of {count}"


def _usual_rates(facts: Facts) -> str:
    return "5e-7 to 5e-6 for full fine-tuning" if facts.full else "5e-6 to 5e-5 for adapters (up to 3e-4 for few pairs)"
