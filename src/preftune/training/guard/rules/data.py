"""What the figures say of the pairs: labels without sense, copies, nothing but length, learnt by heart."""

from __future__ import annotations

from preftune.amounts import counted
from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import Glance, History, pooled

LABEL_PAIRS = (32, 512)
"""A quarter of the run's pairs, but at least and at most this many, are asked whether labels mean anything: a short run
has no more, and where there are more, weak but real preferences must not be taken for chance."""

STIRRED = 0.5
"""Nats by which the pairs of a step must have been moved, root mean square, to be asked: the first steps of a warm-up
move nothing. This looks at how far, not at which way, so it does not favour an answer."""

MOVED = 1.0
"""The same for all pairs that are asked."""

SIGNIFICANT = 2.2
"""Standard errors by which the mean margin of right labels is above 0; of random ones it is so once in seventy."""

GUESSING = 0.65
"""Most of 32 pairs that guessing is likely to get right (95 times in 100)."""

BELOW_CHANCE = 0.95
"""Times the first loss. Pairs moved without regard to their labels cost as much as before or more; with right labels,
moved this far, they cost less."""

COPIES = 0.4
"""Share of pairs that were trained on before in the same pass."""
COPIES_PAIRS = 32
SOME_COPIES = 0.15
SOME_COPIES_PAIRS = 256

ONE_SIDED = 0.95
"""Share of pairs in which the same side, chosen or rejected, is the longer one."""
ONE_SIDED_PAIRS = 32
CONTAINED = 0.8
"""Of the shorter side's tokens, in the longer one: then there is little else that tells them apart."""
LEARNT = 0.8
"""Accuracy from which on a rule counts as learnt."""
LENGTH_MOVED = 1.25
"""Times longer, or shorter, that answers have become when only length is learnt."""

GAP = 0.15
"""Accuracy on pairs trained on before, over that on held-out pairs."""


def labels_look_random(history: History) -> Alarm | None:
    """Fresh pairs are moved apart, but as often in the wrong direction as in the right one."""
    start, now = history.glances[0] if history.glances else None, _stirred(history)
    if now is None or start is None or now.margin_rms < MOVED or now.known > 0.5:
        return None
    significant = now.margin > SIGNIFICANT * now.margin_error
    if significant or now.accuracy > GUESSING or now.loss < BELOW_CHANCE * start.loss:
        return None
    seen = (
        f"Training has moved the pairs by {now.margin_rms:.1f} nats, but only {now.accuracy:.0%} of the last "
        f"{now.pairs:.0f} in the direction of their label; the loss is {now.loss:.2f}, and that of guessing "
        f"{start.loss:.2f}."
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
    """The last pairs that training has moved at all, as many as the question takes; None if there are fewer."""
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
    """In one pass over the data the same pairs come again."""
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
    """Everything seen in the first pass over the data."""
    whole = history.glances
    if history.facts.epochs > 1:
        last = history.facts.steps / history.facts.epochs
        whole = [glance for glance in whole if glance.step <= last]
    return pooled(whole)


def only_length_differs(history: History) -> Alarm | None:
    """The same side is longer in all pairs, that is learnt, and little else tells them apart (or answers follow)."""
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
    """Pairs that were trained on before are ranked right, held-out ones less and less."""
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
