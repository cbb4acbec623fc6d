"""Rules for the policy's answers, compared with the reference's answers to the same prompts."""

from __future__ import annotations

from preftune.training.guard.alarms import NOTE, Alarm
from preftune.training.guard.figures import Facts, History, Look

MORE = 0.25
"""Share of the answers by which the policy must be worse than the reference; at least two answers."""

ALIKE = 0.5
"""Mean overlap of answers to different prompts from which they count as the same."""
ALIKE_MORE = 0.3
"""Least difference of this overlap from the reference's."""

ENDS = 0.5
"""Least share of the reference's answers that the model ended."""
ENDS_LESS = 0.4
"""Decrease of this share that counts."""

OUTSIDE = 2.0
"""Factor by which answers must be longer than both the reference's and the chosen answers, or shorter than both."""


def repetition(history: History) -> Alarm | None:
    look = history.look
    if look is None or look.looping is None or not _more(look, look.looping, look.looping_reference):
        return None
    return history.alarm(
        "repetition",
        seen=f"{_count(look, look.looping)} answers to the guard's prompts are repetitive; of the reference's, "
        f"{round((look.looping_reference or 0) * look.answers)} were.",
        cause=_over_optimised(history.facts),
        remedy=history.facts.hold_back,
        figures=_figures(look, "looping", "looping_reference", "repeated", "repeated_reference", "distinct_2"),
    )


def answers_alike(history: History) -> Alarm | None:
    look = history.look
    if look is None or look.self_similarity is None or look.answers < 3:
        return None
    if look.self_similarity < max(ALIKE, (look.self_similarity_reference or 0.0) + ALIKE_MORE):
        return None
    return history.alarm(
        "answers-alike",
        seen=f"Answers to different prompts are nearly the same: an overlap of {look.self_similarity:.0%}; the "
        f"reference's had {look.self_similarity_reference or 0:.0%}.",
        cause=_over_optimised(history.facts),
        remedy=history.facts.hold_back,
        figures=_figures(look, "self_similarity", "self_similarity_reference", "distinct_2"),
    )


def empty_answers(history: History) -> Alarm | None:
    look = history.look
    if look is None or look.empty is None or not _more(look, look.empty, look.empty_reference):
        return None
    return history.alarm(
        "empty-answers",
        seen=f"{_count(look, look.empty)} answers are empty; of the reference's, "
        f"{round((look.empty_reference or 0) * look.answers)} were.",
        cause="The policy ends its turn at once: chosen answers are empty or cut off in the data, or it has moved too "
        "far from the reference.",
        remedy="Check the chosen answers (preftune audit); if they are complete, halve the learning rate.",
        figures=_figures(look, "empty", "empty_reference"),
    )


def missing_eos(history: History) -> Alarm | None:
    look = history.look
    if look is None or look.finished is None or look.finished_reference is None or look.finished_reference < ENDS:
        return None
    lost = look.finished_reference - look.finished
    if lost < ENDS_LESS or lost * look.answers < 2.5:
        return None
    return history.alarm(
        "missing-eos",
        seen=f"Only {_count(look, look.finished)} answers are ended by the model; of the reference's, "
        f"{round(look.finished_reference * look.answers)} were.",
        cause="The policy no longer ends its turn: chosen answers are cut off (max_length, or in the data), the longer "
        "side wins too often, or the policy has moved too far from the reference.",
        remedy="Check how many rows were truncated (audit.json) and raise max_length; if no row was, halve the "
        "learning rate.",
        figures=_figures(look, "finished", "finished_reference", "length_ratio"),
    )


def length_drift(history: History) -> Alarm | None:
    """The answers are much longer, or shorter, than both the reference's and the chosen ones. A length between these is
    what the pairs teach.
    """
    look, now = history.look, history.last_pairs(1)
    if look is None or now is None or not look.tokens_reference or look.tokens is None or look.answers < 4:
        return None
    shortest, longest = sorted((look.tokens_reference, now.chosen_tokens))
    if shortest / OUTSIDE <= look.tokens <= longest * OUTSIDE:
        return None
    what = "longer" if look.tokens > longest else "shorter"
    return history.alarm(
        "length-drift",
        level=NOTE,
        seen=f"The answers have {look.tokens:.0f} tokens on average; the reference's had {look.tokens_reference:.0f}, "
        f"the chosen ones have {now.chosen_tokens:.0f}.",
        cause=f"The pairs reward {what} answers, more than the chosen ones are.",
        remedy="Check with preftune audit how much length alone explains, and use a length-controlled win rate.",
        figures=_figures(look, "tokens", "tokens_reference", "length_ratio"),
    )


def _over_optimised(facts: Facts) -> str:
    return f"The policy over-optimises: {facts.too_free}."


def _more(look: Look, policy: float, reference: float | None) -> bool:
    more = policy - (reference or 0.0)
    return more >= MORE and more * look.answers >= 1.5


def _count(look: Look, share: float) -> str:
    return f"{round(share * look.answers)} of {look.answers}"


def _figures(look: Look, *names: str) -> dict[str, float]:
    return {name: float(value) for name in names if (value := getattr(look, name)) is not None}


def judged_worse(history: History) -> Alarm | None:
    """The judge of the evaluations significantly prefers the reference's answers in two evaluations in a row. A single
    one of many evaluations may be below 50% by chance.
    """
    for prefix in dict.fromkeys(one.prefix for one in history.verdicts):
        last = [one for one in history.verdicts if one.prefix == prefix][-2:]
        if len(last) == 2 and all(one.high < 0.5 for one in last):
            before, now = last
            return history.alarm(
                "judged-worse",
                seen=f"The judge prefers the policy's answers in {now.rate:.0%} of the held-out prompts (95% interval "
                f"{now.low:.0%} to {now.high:.0%}), after {before.rate:.0%} at step {before.step}: it prefers the "
                "reference's.",
                cause="The policy gets worse by this judge: the pairs do not prefer what it prefers, or "
                + history.facts.too_free
                + ".",
                remedy="Check whether the judge agrees with the pairs (preftune judge-check). "
                + history.facts.hold_back,
                figures={"win_rate": now.rate, "win_rate_low": now.low, "win_rate_high": now.high},
            )
    return None
