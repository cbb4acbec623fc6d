"""The guard of a run on fresh answers. It draws none of its own: every round brings the policy's answers anyway.

The first round was written by the policy as received, so it stands for the reference; what came since is compared with
it. Alarms, modes and files are those of the guard of `DPOTrainer`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from transformers import TrainerCallback

from preftune.log import detail
from preftune.storage.run_directory import append_line, cut_back
from preftune.text_quality.single_answer import look_at, self_similarity
from preftune.training.guard.alarms import ALARM, NOTE, Alarm
from preftune.training.guard.rollback import GoodWeights, end_run
from preftune.training.online.rollout import Rollout
from preftune.training.protocol import OnlineTrainerView

_LOOKED_AT = 32
"""Answers of a round whose text is examined."""
_WRITTEN = 4
"""Answers of a round that go to samples.jsonl."""

MORE = 0.25
"""Share of the answers by which a round must be worse than the first one."""
LONGER = 2.0
ENDS_LESS = 0.4
FAR = 0.7
"""KL per token, in nats: every word is half as likely to the reference as to the policy."""
CLIPPED = 0.5
"""Share of tokens that clipping took the gradient of: steps are too large for the clip to hold."""
COLLAPSED = 0.1
"""Share of the first round's entropy per token that is left."""
ALIKE, ALIKE_MORE = 0.5, 0.3


class RoundFigures(NamedTuple):
    """What the answers of one round look like; shares of the answers, tokens, nats."""

    answers: int
    repeats: float
    empty: float
    finished: float
    length: float
    alike: float


def figures_of(rollouts: Sequence[Rollout]) -> RoundFigures:
    """A look at a round's answers."""
    looked = rollouts[:_LOOKED_AT]
    texts = [look_at(one.text, finished=one.finished) for one in looked]
    distinct = {one.prompt.id: one.text for one in looked}
    return RoundFigures(
        answers=len(looked),
        repeats=sum(text.repeats for text in texts) / len(texts),
        empty=sum(text.empty for text in texts) / len(texts),
        finished=sum(one.finished for one in rollouts) / len(rollouts),
        length=sum(len(one.response_ids) for one in rollouts) / len(rollouts),
        alike=self_similarity(list(distinct.values())) if len(distinct) > 2 else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Cure:
    cause: str
    remedy: str


_HELD_BACK = _Cure(
    "The policy has found answers that the reward rates highly but a reader would not (over-optimisation).",
    "Raise {holds_back}; add a second reward model.",
)
_ENDLESS = _Cure(
    "Nothing rewards the policy for ending its answers, or the reward favours length.",
    "Set missing_eos_penalty=1, and give max_new_tokens room for whole answers.",
)
_SLOWER = _Cure("The optimiser's steps are too large.", "Halve the learning rate, or {repeats}.")


class Options(Protocol):
    """What a method calls the options that remedies name."""

    holds_back: ClassVar[str]
    repeats: ClassVar[str]


def round_alarms(
    first: RoundFigures,
    now: RoundFigures,
    logs: Mapping[str, float],
    start: Mapping[str, float],
    step: int,
    options: Options | type[Options],
) -> list[Alarm]:
    """What is wrong with a round, compared with the first one.

    Args:
        logs, start: figures as logged, now and of the first round.
    """
    found = [*_of_answers(first, now), *_of_figures(logs, start)]
    names = {"holds_back": options.holds_back, "repeats": options.repeats}
    return [Alarm(step, s.name, s.seen, s.fix.cause, s.fix.remedy.format(**names), s.level, s.figures) for s in found]


class _Seen(NamedTuple):
    """What an alarm is made of."""

    name: str
    seen: str
    fix: _Cure
    figures: dict[str, float]
    level: str = ALARM


def _of_answers(first: RoundFigures, now: RoundFigures) -> Iterator[_Seen]:
    enough = round(max(2, MORE * now.answers)) / now.answers
    if now.repeats - first.repeats >= enough:
        seen = f"{now.repeats:.0%} of the answers are repetitive; at the start {first.repeats:.0%} were."
        yield _Seen("repetition", seen, _HELD_BACK, {"repeats": now.repeats, "first": first.repeats})
    if now.empty - first.empty >= enough:
        seen = f"{now.empty:.0%} of the answers are empty; at the start {first.empty:.0%} were."
        yield _Seen("empty-answers", seen, _HELD_BACK, {"empty": now.empty, "first": first.empty})
    if now.alike >= max(ALIKE, first.alike + ALIKE_MORE):
        seen = "Answers to different prompts are nearly the same: an overlap of "
        seen += f"{now.alike:.0%}; at the start {first.alike:.0%}."
        yield _Seen("answers-alike", seen, _HELD_BACK, {"alike": now.alike, "first": first.alike})
    if first.finished >= 0.5 and first.finished - now.finished >= ENDS_LESS:
        seen = f"{now.finished:.0%} of the answers come to an end; at the start {first.finished:.0%} did."
        yield _Seen("missing-end", seen, _ENDLESS, {"finished": now.finished, "first": first.finished})
    if now.length >= LONGER * first.length or LONGER * now.length <= first.length:
        seen = f"Answers have {now.length:.0f} tokens on average; at the start {first.length:.0f}."
        fix = _ENDLESS if now.length > first.length else _HELD_BACK
        yield _Seen("length", seen, fix, {"length": now.length, "first": first.length}, NOTE)


def _of_figures(logs: Mapping[str, float], start: Mapping[str, float]) -> Iterator[_Seen]:
    kl = logs.get("objective/kl_per_token", 0.0)
    if kl >= FAR:
        seen = f"The policy is {kl:.2f} nats per token from the reference."
        yield _Seen("far-from-reference", seen, _HELD_BACK, {"kl": kl})
    clipped = logs.get("policy/clipfrac_avg", 0.0)
    if clipped >= CLIPPED:
        seen = f"Clipping removed the gradient of {clipped:.0%} of the tokens."
        yield _Seen("clipped", seen, _SLOWER, {"clipped": clipped})
    entropy, before = logs.get("policy/entropy_avg"), start.get("policy/entropy_avg")
    if entropy is not None and before is not None and before > 0.1 and entropy <= COLLAPSED * before:
        seen = f"The policy's answers hardly vary any more: {entropy:.3f} nats per token, at the start {before:.2f}."
        yield _Seen("entropy-collapse", seen, _HELD_BACK, {"entropy": entropy, "first": before})


class Watch(TrainerCallback):
    """The callback: looks at every round when its figures are logged, and acts as `guard` says."""

    def __init__(self, trainer: OnlineTrainerView, mode: str) -> None:
        self._trainer, self.mode = trainer, mode
        self._folder = Path(trainer.args.output_dir)
        self._first: RoundFigures | None = None
        self._start: dict[str, float] = {}
        self._now: RoundFigures | None = None
        self._raised: set[str] = set()
        self._good: GoodWeights | None = None
        """Of the last round that was in order."""
        self._wrote: GoodWeights | None = None
        """Those that wrote the present round: good as soon as it is known to be in order."""
        self._seconds = 0.0
        self.rolled_back_to: int | None = None

    def saw(self, rollouts: Sequence[Rollout]) -> None:
        """Look at a round that was just sampled."""
        began = time.perf_counter()
        self._now = figures_of(rollouts)
        step = self._trainer.state.global_step
        for one in rollouts[:_WRITTEN]:
            append_line(
                self._folder / "samples.jsonl",
                {
                    "step": step,
                    "time": time.time(),
                    "id": one.prompt.id,
                    "prompt": one.prompt.prompt,
                    "reference": None,  # it was not asked this prompt
                    "policy": one.text,
                    "policy_tokens": len(one.response_ids),
                    "policy_finished": one.finished,
                },
            )
        if self._first is None:
            self._first = self._now
        if self.mode == "rollback":
            self._wrote = self._wrote or GoodWeights(self._trainer.trained)
            self._wrote.keep(self._trainer.trained, step, None)
        self._seconds += time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"first": self._first, "start": self._start, "raised": sorted(self._raised), "seconds": self._seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._first = RoundFigures(*state["first"]) if state["first"] else None
        self._start, self._raised, self._seconds = dict(state["start"]), set(state["raised"]), state["seconds"]

    def begin(self, *, resumed_step: int | None) -> None:
        """Forget what an earlier run in this folder left, or what a resumed one will write again."""
        for name, later in (("samples.jsonl", 1), ("guard.jsonl", 0)):  # answers are sampled after their step is saved
            if resumed_step is None:
                (self._folder / name).unlink(missing_ok=True)
            else:
                cut_back(self._folder / name, resumed_step - later)
        detail("guard: it compares the sampled answers of each round with those of the first round.")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "objective/kl" not in logs or self._first is None or self._now is None:
            return
        self._start = self._start or dict(logs)
        found = round_alarms(self._first, self._now, logs, self._start, state.global_step, self._trainer)
        new = [alarm for alarm in found if alarm.name not in self._raised]
        for alarm in new:
            self._raised.add(alarm.name)
            alarm.announce(self._folder, self.mode)
        if any(alarm.level == ALARM for alarm in new) and self.mode != "warn":
            control.should_training_stop = True
            good = self._good or self._wrote  # in the first round of a run, the only ones there are
            self.rolled_back_to = end_run(good, self._trainer.trained, state.global_step)
        elif not any(alarm.level == ALARM for alarm in found):
            self._good, self._wrote = self._wrote, self._good
        self._trainer._record.note(guard=self.record())

    def record(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "mode": self.mode,
            "on": True,
            "spent_seconds": round(self._seconds, 3),
            "alarms": sorted(self._raised),
            "rolled_back_to": self.rolled_back_to,
        }
