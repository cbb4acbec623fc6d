"""Advice after an evaluation: one change at a time, the most likely one first.

The rules are those of the tutorials that people come from (docs/evaluation.md names them): 55% means that it worked,
below 50% the data and beta are to be checked, repetition asks for half the learning rate first. A higher beta keeps the
model closer to the reference, a lower one lets it go further; some tutorials have it the other way round.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from preftune.amounts import counted
from preftune.judges.people.agreement import CONTRADICTING
from preftune.statistics.intervals import WinRate, more_prompts, verdict
from preftune.statistics.length_control import LengthControlled
from preftune.statistics.verdict_names import (
    BETTER,
    CHEAT,
    DEGENERATE,
    FORGETFUL,
    LESS_CORRECT,
    LONGER,
    SHORTER,
    UNDECIDED,
    WORSE,
)
from preftune.statistics.verdict_rules import win_rate_in
from preftune.storage.untrusted_json import Figures, at, items, number, truth

SPOILT = frozenset(("repeats", "repeated", "distinct_2", "self_similarity", "unfinished", "empty", "language_switch"))
"""Figures of a `Degeneration` that show too much change."""
NARROW = 0.05
"""An undecided interval within this distance of 50% means that there is hardly any difference, for any number of
prompts.
"""
_BALANCE = (
    "Balance the training pairs by length: the chosen answers are {} (preftune audit shows how far apart they are). "
    "Length is what the model learnt."
)
_FAILING = {
    CHEAT: (
        "Do not use this win rate. Read some of the answers: the model found a way to please the judge. Remove such "
        "answers from the training data, or correct the reward that paid for them."
    ),
    SHORTER: _BALANCE.format("shorter"),
    LONGER: _BALANCE.format("longer"),
    LESS_CORRECT: (
        "Read the prompts whose correct answer was lost, and add pairs whose chosen answer is the correct one. If the "
        "pairs have nothing to do with these prompts, halve the learning rate."
    ),
    DEGENERATE: "Read the prompts that show it (degeneration.worst in summary.json).",
    FORGETFUL: (
        "Train less: halve the learning rate, or use a higher beta, or add general data. Then run preftune eval "
        "--suite general again."
    ),
}
"""First steps where the win rate is above 50% and another rule fails."""
MANY_TIES = 0.5
UNDECIDING = 0.5
"""Above this share of such comparisons, ties say nothing about how far the model moved."""


class _Training(NamedTuple):
    """How the aligned model was trained, as far as it is known."""

    method: str | None = None
    """`ppo`, `grpo`, `rloo`, `nash-md`, `sft`; everything else is taken for DPO."""
    beta: float | None = None
    learning_rate: float | None = None
    epochs: float | None = None
    kl_coef: float | None = None
    usual_beta: bool = True
    """beta is the strength of a KL penalty on DPO's scale; with other losses nothing is said of it."""

    @property
    def has_rewards(self) -> bool:
        """It learnt from scores of its own answers."""
        return self.method in ("ppo", "grpo", "rloo", "nash-md")

    @property
    def penalty(self) -> tuple[str, str]:
        """What holds it near the model it came from, where it learnt from scores: lower, and higher."""
        if self.method == "ppo":
            now = _now(self.kl_coef)
            return f"a lower kl_coef{now} or a higher kl_target", f"a higher kl_coef{now} or a lower kl_target"
        return f"a lower beta{_now(self.beta)}", f"a higher beta{_now(self.beta)}"


def next_steps(
    result: WinRate,
    *,
    worse: Collection[str] = (),
    length_controlled: LengthControlled | None = None,
    contradicted: float | None = None,
    unread: float = 0.0,
    judge_only_ties: bool = False,
    name: str = "",
    **training: Any,
) -> list[str]:
    """What to do next, in sentences for people; never empty.

    Args:
        worse: what got worse in the answers themselves, `Degeneration.worse`.
        contradicted: share of the comparisons in which the judge contradicted itself when the answers were swapped.
        unread: share of the comparisons without a verdict that could be read.
        judge_only_ties: the judge called every comparison of two different answers a tie.
        name: of the verdict (`verdict_rules`); by default that of the win rate alone.
        training: `method`, `beta`, `usual_beta`, `learning_rate`, `epochs` and `kl_coef` of the run, where they are
            known; the sentences then give numbers.
    """
    how = _Training(**training)
    spoilt = bool(SPOILT & set(worse))
    name = name or verdict(result).name
    steps: list[str] = []
    failing = _FAILING.get(name.partition(":")[0])
    if failing is not None:
        too_much = name == DEGENERATE or name.startswith(CHEAT)
        steps += [failing, *(_less_change(how) if too_much else [])]
    elif name == WORSE:
        steps += _worse(spoilt, how)
    elif spoilt:
        steps += _less_change(how)
    elif name == BETTER:
        steps += _better(length_controlled)
    elif judge_only_ties or unread + (contradicted or 0.0) * (1 - unread) >= UNDECIDING:
        return _judge_first(contradicted, unread, judge_only_ties)
    elif name == UNDECIDED:
        steps += _undecided(result, how)
    else:
        steps += _more_change(how)
    if name != BETTER and failing is None and length_controlled is not None:
        steps += _length(length_controlled)
    return steps + _judge_first(contradicted, unread, judge_only_ties)


def steps_after(figures: Figures, name: str, **training: Any) -> list[str]:
    """`next_steps` for the figures of a summary; empty if they hold no win rate.

    Args: `name` and `training` as for `next_steps`.
    """
    result = win_rate_in(figures)
    if result is None:
        return []
    asked, disagreed = (number(at(figures, "position_bias", part)) for part in ("asked", "disagreed"))
    return next_steps(
        result,
        worse=[one for one in items(at(figures, "degeneration", "worse")) if isinstance(one, str)],
        length_controlled=LengthControlled.from_dict(figures.get("length_controlled")),
        contradicted=disagreed / asked if asked and disagreed is not None else None,
        unread=(number(figures.get("unjudged")) or 0.0) / result.n,
        judge_only_ties=bool(truth(figures.get("judge_only_ties"))),
        name=name,
        **training,
    )


def _judge_first(contradicted: float | None, unread: float, only_ties: bool) -> list[str]:
    """What to do about the judge; empty when there is nothing."""
    steps = []
    if only_ties:
        steps.append(
            "Check the judge before the model: it called every comparison of two different answers a tie, or scored "
            "all of them the same. Try it on two answers of your own, and test with preftune judge-check whether it "
            "distinguishes good answers from bad ones."
        )
    if unread >= CONTRADICTING:
        steps.append(
            f"Check the judge before the model: {unread:.0%} of the comparisons have no readable verdict and count as "
            "ties. Repeat them with --ask_again and a higher --judge_max_tokens, or use another judge."
        )
    if contradicted is not None and contradicted >= CONTRADICTING:
        steps.append(
            f"The judge contradicts itself in {contradicted:.0%} of the comparisons when the answers are swapped. Use "
            "a stronger judge, and measure with preftune judge-check how often it agrees with people."
        )
    return steps


def _better(controlled: LengthControlled | None) -> list[str]:
    if (
        controlled is not None
        and controlled.win_rate is not None
        and controlled.ci_low <= 0.5
        and controlled.win_rate < controlled.raw_win_rate
        and controlled.cross_validated_loss < controlled.plain_loss
    ):
        preferred = "longer" if controlled.length_coefficient > 0 else "shorter"
        return [
            "Part of this is length: at equal length the advantage is not shown. Check with preftune audit whether "
            f"the chosen answers of the training pairs are {preferred}, and balance them.",
            "Read a few answers side by side before you use the model.",
        ]
    return [
        "Check the side effects: preftune eval with --suite general measures what alignment may damage.",
        "Read the answers that lost (outcome loss in verdicts.jsonl): they show which pairs to collect next.",
    ]


def _undecided(result: WinRate, how: _Training) -> list[str]:
    steps = []
    further = more_prompts(result)
    narrow = result.ci_low >= 0.5 - NARROW and result.ci_high <= 0.5 + NARROW
    ties = (result.ties - result.unread) / result.n
    if further is None and result.unread:
        steps.append(
            f"First obtain the missing verdicts ({result.unread:,}), which may decide the result: --ask_again, a "
            "higher --judge_max_tokens, or another judge."
        )
    if further is not None and not narrow:
        steps.append(f"First evaluate on about {counted(further, 'more prompt')}.")
    if ties >= MANY_TIES:
        steps.append(
            f"{ties:.0%} of the comparisons are ties: read some, to see whether the two models give nearly the same "
            "answers or the judge cannot distinguish them."
        )
    if narrow:
        steps.append("The interval is narrow around 50%: there is hardly any difference that more prompts could show.")
    return steps + _more_change(how)


def _now(value: float | None) -> str:
    return "" if value is None else f" (now {value:g})"


def _more_change(how: _Training) -> list[str]:
    """Advice for too little change."""
    steps = [
        "If the model changed too little, first use more or better pairs. preftune audit reports what is wrong with "
        "the existing ones; about 1,000 good pairs make a difference in one domain."
    ]
    if how.has_rewards:
        return [
            "If the model changed too little, check whether the reward rose during training. If it did, the reward "
            "model rewards something else than this judge: train it on more pairs, and check its held-out accuracy.",
            f"If it did not, use more episodes (total_episodes), then {how.penalty[0]}.",
        ]
    usual, top = ("5e-6 to 5e-5", 5e-4) if how.method == "sft" else ("5e-7 to 5e-6", 5e-5)
    above = how.learning_rate is not None and how.learning_rate >= top  # the top of what an adapter takes
    higher = "Not a higher learning rate than now" if above else "Then a higher learning rate within its range"
    steps.append(
        f"{higher}{_now(how.learning_rate)}: {usual} for full fine-tuning, about ten times that for an adapter."
    )
    if how.method == "sft":
        return [steps[0].replace("pairs", "demonstrations"), steps[1]]
    if not how.usual_beta:
        return steps
    lower = "A lower beta, down to 0.05" if how.beta is None or how.beta > 0.05 else "Not a lower beta than now"
    return [*steps, f"{lower}{_now(how.beta)}: it lets the model move further from the one it was trained from."]


def _less_change(how: _Training, *, when: str = "") -> list[str]:
    """Advice for too much change.

    Args:
        when: what the first step depends on, with a comma and a space.
    """
    rate = "" if how.learning_rate is None else f" ({how.learning_rate:g} to {how.learning_rate / 2:g})"
    steps = [f"{when}{'halve' if when else 'Halve'} the learning rate{rate} first: the model changed too much."]
    if how.has_rewards:
        steps.append(
            f"If that is not enough, {how.penalty[1]}: the penalty keeps the model close to the one it was trained "
            "from."
        )
        return [*steps, "End training where the judge's win rate is best, not where the reward is highest."]
    if how.method != "sft" and how.usual_beta and (how.beta is None or how.beta < 0.5):
        wanted = "0.5" if how.beta is not None and how.beta >= 0.2 else "0.2 to 0.5"
        steps.append(
            f"If that is not enough, a higher beta{_now(how.beta)}: {wanted} keeps the model closer to the one it was "
            "trained from."
        )
    if how.epochs is None or how.epochs > 1:
        now = "" if how.epochs is None else f" instead of {how.epochs:g}"
        steps.append(f"Train for one epoch{now}: repeated preferences are memorised.")
    return steps


def _worse(spoilt: bool, how: _Training) -> list[str]:
    check = (
        "Check the data: preftune audit finds sides that are swapped or contradict each other, and pairs that differ "
        "only in length. Held-out accuracy near or below 50% indicates the same."
    )
    if how.has_rewards:
        check = (
            "Check the reward: preftune judge-check compares the reward model with people's judgements, and a reward "
            "that rose while the answers got worse was exploited."
        )
    if spoilt:
        return [*_less_change(how), check]
    good = "If the reward is good, " if how.has_rewards else "If the data are good, "
    return [check, *_less_change(how, when=good)]


def _length(controlled: LengthControlled) -> list[str]:
    if controlled.win_rate is None:
        return []
    gain = controlled.win_rate - controlled.raw_win_rate
    if abs(gain) < NARROW or controlled.cross_validated_loss >= controlled.plain_loss:
        return []
    if gain > 0:
        return [
            f"At equal length it would win {controlled.win_rate:.1%}: it loses by the length of its answers. Check "
            "whether the chosen answers of the training pairs are of a length that the judge dislikes."
        ]
    return [
        f"At equal length it would win only {controlled.win_rate:.1%}: it has mainly learnt length. Balance the "
        "training pairs by length (preftune audit shows how far apart they are)."
    ]


def seen_sentence(seen: int | None, of: int, what: str = "prompts") -> str:
    """That figures show memory too, where prompts were trained on; empty where none was, or that is unknown (None)."""
    if not seen:
        return ""
    return (
        f"The model was trained on {seen:,} of these {of:,} {what}, so the result includes memorisation. Use held-out "
        "prompts: preftune convert --split 0.05 --by prompt before training."
    )
