"""Rules for problems of the data: random labels, copies, pairs that differ only in length, and memorisation."""

from __future__ import annotations

from preftune.amounts import counted
from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import Glance, History, pooled

LABEL_PAIRS = (32, 512)
"""Least and most pairs on which the labels are tested; between them, a quarter of the run's pairs. A short run has few
pairs; more pairs in a long run keep weak but real preferences from being taken for chance."""

STIRRED = 0.5
"""Root mean square of a glance's margins, in nats, above which its pairs are tested: the first steps of a warm-up
change nothing. It does not depend on the sign of the margins, so it does not bias the test."""

MOVED = 1.0
"""The same for all tested pairs together."""

SIGNIFICANT = 2.2
"""Standard errors above 0 from which the mean margin shows that labels are not random; with random labels it is this
high once in seventy times."""

GUESSING = 0.65
"""Accuracy that guessing does not exceed on 32 pairs in 95 of 100 cases."""

BELOW_CHANCE = 0.95
"""Share of the first loss below which labels are not random: at these margins, pairs with random labels cost as much as
before or more."""

COPIES = 0.4
"""Share of pairs that were trained on before in the same pass."""
COPIES_PAIRS = 32
SOME_COPIES = 0.15
SOME_COPIES_PAIRS = 256

ONE_SIDED = 0.95
"""Share of pairs in which the same side, chosen or rejected, is the longer one."""
ONE_SIDED_PAIRS = 32
CONTAINED = 0.8
"""Share of the shorter side's tokens in the longer side from which the sides differ in little but length."""
LEARNT = 0.8
"""Accuracy from which the preference for one length counts as learnt."""
LENGTH_MOVED = 1.25
"""Factor by which answers must have become longer or shorter."""

GAP = 0.15
"""Difference of the accuracies on pairs trained on before and on held-out pairs that counts as overfitting."""


def labels_look_random(history: History) -> Alarm | None:
    """The margins of new pairs are large, but as often negative as positive."""
    start, now = history.glances[0] if history.glances else None, _stirred(history)
    if now is None or start is None or now.margin_rms < MOVED or now.known > 0.5:
        return None
    significant = now.margin > SIGNIFICANT * now.margin_error
    if significant or now.accuracy > GUESSING or now.loss < BELOW_CHANCE * start.loss:
        return None
    seen = (
        f"Training has moved the pairs by {now.margin_rms:.1f} nats, but only {now.accuracy:.0%} of the last "
        f"{now.pairs:.0f} in the direction of their label; the loss is {now.loss:.2f}, and was {start.loss:.2f} in the "
        "first steps."
    )
    look = history.look
    if look is not None and look.accuracy_held_out is not None and look.pairs >= 8 and history.facts.held_out:
        seen += f" Of {counted(look.pairs, 'held-out pair')}, {look.accuracy_held_out:.0%} are ranked correctly."
    return history.alarm(
        "labels-look-random",
        seen=seen,
        cause="The pairs contradict each other: the labels look shuffled, or depend on something that the model does "
        "not see.",
        remedy="Check that chosen and rejected are in the right columns in every source; preftune audit shows rows.",
        figures={
            "accuracy": now.accuracy,
            "pairs": now.pairs,
            "margin": now.margin,
            "margin_error": now.margin_error,
            "margin_rms": now.margin_rms,
            "loss": now.loss,
        },
    )


def _stirred(history: History) -> Glance | None:
    """The last glances with margins above `STIRRED`, pooled, as many as `LABEL_PAIRS` requires; None if too few."""
    first = history.glances[0] if history.glances else None
    if first is None or not first.steps:
        return None
    whole = history.facts.steps * first.pairs / first.steps
    wanted = min(max(whole / 4, LABEL_PAIRS[0]), LABEL_PAIRS[1])
    chosen: list[Glance] = []
    for glance in reversed(history.glances):
        if glance.margin_rms >= STIRRED:
            chosen.insert(0, glance)
        if sum(entry.pairs for entry in chosen) >= wanted:
            return pooled(chosen)
    return None


def duplicated_data(history: History) -> Alarm | None:
    """The same pairs occur again in one pass over the data."""
    first = _first_pass(history)
    if first is None or first.pairs < COPIES_PAIRS:
        return None
    level = None
    if first.copies >= COPIES:
        level = "alarm"
    elif first.copies >= SOME_COPIES and first.pairs >= SOME_COPIES_PAIRS:
        level = NOTE
    if level is None:
        return None
    seen = f"{first.copies:.0%} of the {first.pairs:.0f} pairs so far were exact copies of earlier ones."
    look, facts, now = history.look, history.facts, history.last_pairs(COPIES_PAIRS / 2)
    if look is not None and look.margin_held_out is not None and now is not None and now.known:
        known = facts.beta * now.margin_known
        if known > look.margin_held_out:
            seen += f" Their margin is now {known:.2f}, that of held-out pairs {look.margin_held_out:.2f}."
    return history.alarm(
        "duplicated-data",
        level=level,
        seen=seen,
        cause="The data hold the same pairs many times, and the model memorises them: one epoch counts as several.",
        remedy="Remove the copies (preftune audit finds them, preftune convert drops them) and start again.",
        figures={"copies": first.copies, "pairs": first.pairs, "margin_known": first.margin_known},
    )


def _first_pass(history: History) -> Glance | None:
    """The pooled glances of the first pass over the data."""
    whole = history.glances
    if history.facts.epochs > 1:
        last = history.facts.steps / history.facts.epochs
        whole = [glance for glance in whole if glance.step <= last]
    return pooled(whole)


def only_length_differs(history: History) -> Alarm | None:
    """In nearly all pairs the same side is longer, the policy has learnt to prefer it, and the sides differ in little
    else or the policy's answers have changed their length accordingly.
    """
    everything, now = pooled(history.glances), history.last_pairs(ONE_SIDED_PAIRS / 4)
    if everything is None or now is None or everything.pairs < ONE_SIDED_PAIRS:
        return None
    longer = everything.longer >= ONE_SIDED
    if not longer and everything.shorter < ONE_SIDED:
        return None
    if now.accuracy < LEARNT or now.margin < 2 * now.margin_error:
        return None
    look = history.look
    ratio = None if look is None else look.length_ratio
    followed = ratio is not None and (ratio >= LENGTH_MOVED if longer else ratio <= 1 / LENGTH_MOVED)
    if everything.contained < CONTAINED and not followed:
        return None
    side = "longer" if longer else "shorter"
    share = everything.longer if longer else everything.shorter
    seen = f"In {share:.0%} of the {everything.pairs:.0f} pairs so far the chosen answer is the {side} one"
    if everything.contained >= CONTAINED:
        seen += f", and {everything.contained:.0%} of the shorter one's words are in the longer one too"
    seen += f"; the policy prefers the {side} one in {now.accuracy:.0%} of the last."
    if followed and ratio is not None:
        seen += f" Its own answers are {ratio:.1f} times as long as the reference's."
    serious = everything.contained >= CONTAINED
    return history.alarm(
        "only-length-differs",
        level="alarm" if serious else NOTE,
        seen=seen,
        cause=f"These pairs teach length: the {side} answer is always the better one.",
        remedy=f"Add pairs in which the better answer is not the {side} one, or drop those that differ only in "
        "length; use a length-controlled win rate.",
        figures={
            "share": share,
            "contained": everything.contained,
            "accuracy": now.accuracy,
            "length_ratio": ratio or 0,
        },
    )


def overfitting(history: History) -> Alarm | None:
    """The accuracy on pairs that were trained on before is high, and that on held-out pairs much lower."""
    look, facts = history.look, history.facts
    now = history.last_pairs(ONE_SIDED_PAIRS, until=None if look is None else look.step)
    if look is None or now is None or not facts.held_out or look.accuracy_held_out is None or now.known < 0.5:
        return None
    best = max((other.accuracy_held_out or 0.0) for other in history.looks)
    error = (look.accuracy_held_out * (1 - look.accuracy_held_out) / max(1, look.pairs)) ** 0.5
    gap = now.accuracy - look.accuracy_held_out
    if now.accuracy < 0.9 or gap < GAP + 2 * error or look.pairs < 16:
        return None
    fell = f" (at best it was {best:.0%})" if best > look.accuracy_held_out else ""
    return history.alarm(
        "overfitting",
        seen=f"Of the pairs trained on before, {now.accuracy:.0%} are ranked correctly; of "
        f"{counted(look.pairs, 'held-out pair')}, {look.accuracy_held_out:.0%}{fell}.",
        cause="The model memorises the training pairs: too many epochs, or too few different pairs.",
        remedy="Train for one epoch, and check the data for near-copies (preftune audit).",
        figures={"accuracy": now.accuracy, "accuracy_held_out": look.accuracy_held_out, "best_held_out": best},
    )
