"""The guard as a callback of transformers' Trainer: it reads the training metrics, takes looks when they are due,
raises alarms and acts on them.

An error of the guard never ends a run: it is reported, and the guard is switched off. With several ranks, the first one
looks and decides, and the others receive its decision after every glance. With sharded weights all ranks look, because
no rank could generate alone; an error of a look then ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from preftune.amounts import counted
from preftune.errors import PreftuneError
from preftune.log import detail, say, warn
from preftune.logps.batch import PackedBatch
from preftune.reference import unwrap
from preftune.storage.jsonl import read_lines
from preftune.storage.run_directory import append_line, cut_back
from preftune.training.config.referenced import ReferencedConfig
from preftune.training.guard.alarms import ALARM, Alarm
from preftune.training.guard.figures import Facts, Glance, History, Look, Verdicts, history_of
from preftune.training.guard.looking import Looker, trainer_steps
from preftune.training.guard.rollback import GoodWeights, Quality, end_run
from preftune.training.guard.rules import new_alarms, suspicious
from preftune.training.guard.samples import ReferenceAnswers, opened, prompts_from_file
from preftune.training.guard.schedule import Schedule
from preftune.training.guard.tally import FLAGS, Seen, Tally
from preftune.training.protocol import WatchedTrainerView

GLANCES = 128
"""Glances of a run: one every `max_steps // GLANCES` steps, so fewer than twice this number."""

GO_ON, KEEP, STOP, ROLL_BACK, OFF = range(5)
"""The decisions that the first rank sends to the others."""


class Taken(NamedTuple):
    """A look."""

    look: Look
    lines: list[dict[str, Any]]
    """For samples.jsonl."""
    seconds: float


class Guard(TrainerCallback):
    """Watches one trainer.

    Args:
        source: the dataset of the prompts, as `samples.opened` returns it.
        held_out: whether this dataset is not trained on.
    """

    def __init__(self, trainer: WatchedTrainerView, source: Any, *, held_out: bool) -> None:
        args = trainer.args
        self._trainer, self.mode, self.budget = trainer, str(args.guard), float(args.guard_budget)
        self._folder = Path(args.output_dir)
        self._looker = Looker(trainer, source, held_out=held_out)
        self._held_out = held_out
        self._pairs = "rewards/margins" in trainer.columns
        """Whether a step trains on pairs. In a training on single answers, the guard reads only the policy's own."""
        self._tally, self._seen = Tally(beta=args.beta), Seen()
        self._answers: ReferenceAnswers | None = None
        self._spent_before = self._look_seconds = 0.0
        self.alarms: list[Alarm] = []
        self._raised: set[str] = set()
        self.rolled_back_to: int | None = None
        self._good: GoodWeights | None = None
        self._history = History(self._facts())
        self._broken = False
        """Whether the guard failed on this rank; the others learn of it with the next glance."""
        self._over = False
        self._drawn = False
        self._sharded = (sharding := trainer.args.sharding) is not None
        self._offloaded = sharding is not None and sharding.cpu_offload

    # --- the figures of a step ---

    def marked(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """The rows of `pair_metrics` with the columns of `Seen.flags`, shape (N, metrics + FLAGS); for single answers,
        the rows unchanged.
        """
        if not self._pairs:
            return rows
        return torch.cat([rows, self._seen.flags(batch, epoch=float(self._trainer.state.epoch or 0.0)).to(rows)], 1)

    def count(self, loss: Tensor, marked: Tensor, batches: Sequence[PackedBatch]) -> Tensor:
        """Count a step, and return the rows without the columns of `Seen.flags`."""
        if not self._pairs:
            return marked
        rows, flags = marked[:, :-FLAGS], marked[:, -FLAGS:]
        if not self._over:
            self._tally.add(loss, rows, flags)
            self._seen.add(batches)
        return rows

    # --- the beginning ---

    def draw(self) -> None:
        """Draw the reference's answers, while the policy is the reference."""
        self._drawn = True
        if self.budget == 0 or self._offloaded or not (self._first() or self._sharded):
            return
        began = time.perf_counter()

        def prepare() -> None:
            prepared = self._looker.prepare(budget=self.budget)
            self._answers, self._look_seconds = prepared.answers, prepared.look_seconds

        self._together(prepare)
        self._spent_before = time.perf_counter() - began

    def begin(self, *, resumed_step: int | None) -> None:
        """Restore the state of a resumed run, or remove the files of an earlier run."""
        if resumed_step is not None and not self._drawn and (self._first() or self._sharded):
            self._together(self._resume_answers)
        self._safely(lambda: self._begin(resumed_step))

    def _resume_answers(self) -> None:
        self._answers = self._looker.resumed()

    def _begin(self, resumed_step: int | None) -> None:
        self._history = History(self._facts())
        files = [self._folder / name for name in ("samples.jsonl", "guard.jsonl")]
        self.alarms, self._raised, self.rolled_back_to = [], set(), None
        known = (self._trainer._resume_state or {}).get("guard") if resumed_step is not None else None
        if known:  # missing in a checkpoint of an earlier version or of a run without a guard
            self._tally.restore(known["tally"], self._trainer.args.device)
            self._seen.restore(known["seen"])
        if not self._first():
            return
        if resumed_step is None:
            for file in files:
                file.unlink(missing_ok=True)
        else:
            for file in files:
                cut_back(file, resumed_step)
            self._history = history_of(self._facts(), read_lines(self._folder / "metrics.jsonl"))
            self.alarms = [Alarm.from_dict(line) for line in read_lines(files[1])]
            self._raised = {alarm.name for alarm in self.alarms}
        self._say_what_is_done()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint that is not in metrics.jsonl or the other files of the guard."""
        return {"tally": self._tally.state(), "seen": self._seen.state()}

    def _facts(self) -> Facts:
        args = self._trainer.args
        return Facts(
            beta=args.beta,
            learning_rate=args.learning_rate or 0.0,
            full=self._trainer.full,
            steps=trainer_steps(self._trainer),
            loss=args.loss,
            epochs=float(args.num_train_epochs) if args.max_steps <= 0 else 0.0,
            held_out=self._held_out,
            reference=self._pairs and self._trainer.objective.needs_reference and not args.sync_ref_model,
            usual_beta=self._trainer.objective.has_usual_beta,
        )

    def _say_what_is_done(self) -> None:
        if self._answers is None:
            why = f"guard_budget={self.budget:g} is too small for answers in a run this short"
            if self._offloaded or not self.budget:
                no = "fsdp keeps the weights in main memory" if self._offloaded else "guard_budget=0 leaves no time"
                why = f"{no}, so there are no answers"
            detail(f"guard: {why}; it only watches the training figures.")
        else:
            answers = self._answers
            where = "" if self._held_out else " (of training rows, because no rows are held out)"
            detail(
                f"guard: {counted(len(answers.prompts), 'prompt')}{where}, answers of at most "
                f"{counted(answers.tokens, 'token')}, at most {self.budget:.0%} of the time."
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._history.facts = Facts.from_dict(self._history.facts.to_dict() | {"steps": state.max_steps})
        self._interval = max(1, state.max_steps // GLANCES)
        self._first_step = state.global_step
        self._schedule = Schedule(self.budget, state.max_steps, state.global_step, self._look_seconds)
        self._schedule.spend(self._spent_before)
        self._spent_before = 0.0
        self._began, self._spent_at_begin = time.perf_counter(), self._schedule.spent
        if self.mode == "rollback" and not self._over and not self._sharded:
            self._good = GoodWeights(unwrap(self._trainer.model), step=state.global_step)
            if self._first() and self._good.gigabytes > 1:
                say(f"guard: rollback keeps {self._good.gigabytes:.1f} GB of weights in main memory.")
        self._note()

    # --- every step ---

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if self._over or (step % self._interval and step != state.max_steps) or (self._pairs and not len(self._tally)):
            return
        ranks = args.world_size
        glance = self._tally.drain(step, self._sum_over_ranks, ranks=ranks)
        word, due, looks = OFF, list[bool](), list[Taken]()
        if self._first():
            self._safely(lambda: due.append(self._due(step, glance)))
        if self._broadcast(int(any(due))) if self._sharded else any(due):
            self._together(lambda: looks.append(self._look(step)))
        if self._first():
            words: list[int] = []
            self._safely(lambda: words.append(self._decide(*looks)))
            word = words[0] if words else OFF
        word = self._broadcast(word)
        if word == OFF:
            self._over = True
        elif word == KEEP and self._good is not None:
            look = self._history.look
            self._good.keep(unwrap(self._trainer.model), step, Quality.of(look) if look else None)
        elif word in (STOP, ROLL_BACK):
            self._end(word, step, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._history.verdicts += Verdicts.of(state.global_step, metrics or {})

    def _due(self, step: int, glance: Glance | None) -> bool:
        """Whether the first rank asks for a look, after the glance of this step."""
        history = self._history
        if glance is not None:
            history.glances.append(glance)
            append_line(self._folder / "metrics.jsonl", {"step": step, "time": time.time(), **glance.to_metrics()})
        training = time.perf_counter() - self._began - (self._schedule.spent - self._spent_at_begin)
        suspected = suspicious(history) or bool(new_alarms(history, self._raised))
        return self._answers is not None and self._schedule.due(step, training, suspicious=suspected)

    def _decide(self, taken: Taken | None = None) -> int:
        """The decision of the first rank and the alarms, with a look if one was taken."""
        history, looked = self._history, taken is not None
        if taken is not None:
            self._keep(taken)
        found = new_alarms(history, self._raised)
        serious = [alarm for alarm in found if alarm.level == ALARM]
        for alarm in found:
            self._raise(alarm)
        if serious and self.mode == "rollback":
            return ROLL_BACK
        if serious and self.mode == "stop":
            return STOP
        quality = Quality.of(history.looks[-1]) if looked else None
        good = self._good is not None and looked and not self._raised_alarms() and self._good.better(quality)
        return KEEP if good else GO_ON

    def _look(self, step: int) -> Taken:
        began = time.perf_counter()
        assert self._answers is not None
        with self._trainer.untimed():
            look, lines = self._looker.look(step, self._answers)
        return Taken(look, lines, time.perf_counter() - began)

    def _keep(self, taken: Taken) -> None:
        trainer, look = self._trainer, taken.look
        for line in taken.lines:
            append_line(self._folder / "samples.jsonl", line)
        self._schedule.looked(look.step, taken.seconds)
        look = look._replace(seconds=taken.seconds, share_of_time=self._share())
        self._history.looks.append(look)
        wanted = trainer.control.should_log  # transformers resets it at every log, also if another log is due
        trainer.log(look.to_metrics())
        trainer.control.should_log = wanted
        self._note()

    def _raise_new(self) -> None:
        for alarm in new_alarms(self._history, self._raised):
            self._raise(alarm)

    def _raise(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        self._raised.add(alarm.name)
        alarm.announce(self._folder, self.mode)
        self._note()

    def _end(self, word: int, step: int, control: Any) -> None:
        control.should_training_stop = True
        why = " (sharded weights cannot be rolled back)" if word == ROLL_BACK else ""
        good = self._good if word == ROLL_BACK else None
        self.rolled_back_to = end_run(good, unwrap(self._trainer.model), step, why=why)
        self._note()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._first() and not self._over and self._history.verdicts:  # the last evaluation comes after the last step
            self._safely(self._raise_new)
        self._note()

    # --- what is written ---

    def record(self) -> dict[str, Any]:
        """The facts of the guard for run.json."""
        schedule = getattr(self, "_schedule", None)
        return {
            "mode": self.mode,
            "budget": self.budget,
            "on": not (self._broken or self._over),
            "spent_seconds": round(schedule.spent, 3) if schedule else 0.0,
            "share": round(self._share(), 4),
            "checks": len(self._history.looks),
            "alarms": [alarm.name for alarm in self.alarms],
            "rolled_back_to": self.rolled_back_to,
            "facts": self._history.facts.to_dict(),
        }

    def _note(self) -> None:
        if self._first():
            self._trainer._record.note(guard=self.record())

    def _share(self) -> float:
        """The guard's share of the time since this process started to train, with the reference's answers."""
        schedule: Schedule | None = getattr(self, "_schedule", None)
        if schedule is None:
            return 0.0
        return schedule.spent / max(1e-9, time.perf_counter() - self._began + self._spent_at_begin)

    def _raised_alarms(self) -> bool:
        return any(alarm.level == ALARM for alarm in self.alarms)

    # --- ranks and faults ---

    def _first(self) -> bool:
        return bool(self._trainer.args.process_index == 0)

    def _sum_over_ranks(self, sums: Tensor) -> Tensor:
        if self._trainer.args.world_size == 1:
            return sums
        total: Tensor = self._trainer.accelerator.reduce(sums, "sum")
        return total

    def _broadcast(self, word: int) -> int:
        if self._trainer.args.world_size == 1:
            return word
        said = torch.tensor(word, device=self._trainer.args.device)
        torch.distributed.broadcast(said, src=0)
        return int(said)

    def _together(self, work: Callable[[], object]) -> None:
        """Run `work`, on all ranks if weights are sharded.

        Raises: PreftuneError for an error with sharded weights, because the other ranks wait for this one.
        """
        if not self._sharded:
            self._safely(work)
            return
        try:
            work()
        except Exception as error:
            why = f"guard: the answers of a sharded model failed ({type(error).__name__}: {error})"
            raise PreftuneError(f"{why}. guard_budget=0 leaves them out; the figures are still read.") from error

    def _safely(self, work: Callable[[], object]) -> None:
        """Run `work`. An error of it is reported and switches the guard off; the run continues."""
        if self._broken:
            return
        try:
            work()
        except Exception as error:
            self._broken, self._answers = True, None
            if isinstance(error, torch.OutOfMemoryError):
                torch.get_device_module(self._trainer.args.device).empty_cache()
            warn(
                f"the guard failed and is off for the rest of this run, which continues ({type(error).__name__}: "
                f"{error}). Please report it; guard='off' leaves it out."
            )


def opened_for_guard(train: Any, held_out: Any, args: ReferencedConfig, load: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Both datasets. The one from which the guard or `eval_judge` takes prompts is opened: held-out rows, or for the
    guard training rows if there are no others.

    Args:
        load: opens a dataset of the trainer.
    """
    if args.guard == "off" and (args.eval_judge is None or held_out is None):
        return train, held_out
    return (train, opened(held_out, load)) if held_out is not None else (opened(train, load), None)


def attach_guard(trainer: WatchedTrainerView, train: Any, held_out: Any) -> Guard | None:
    """Add the guard to the callbacks of a trainer, and return it; None with guard='off'.

    Raises:
        ConfigError: the file of `guard_prompts` cannot be read or holds no prompt.
    """
    if trainer.args.guard == "off":
        return None
    if isinstance(trainer.args.guard_prompts, str):
        prompts_from_file(trainer.args.guard_prompts)  # errors in it are reported before the first step
    guard = Guard(trainer, train if held_out is None else held_out, held_out=held_out is not None)
    trainer.add_callback(guard)
    return guard
