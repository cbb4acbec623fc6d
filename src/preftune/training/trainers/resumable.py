"""`ResumableTrainer`: a training that is recorded, resumed and stopped as a whole; what all trainers share.

A run continues from a complete checkpoint of its own with the settings and data that it started with, or is refused
with the difference. A run that has ended is not trained further."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from preftune.amounts import counted
from preftune.errors import CheckpointError, ConfigError, PreftuneError
from preftune.log import say, warn
from preftune.models.locate import files_of_weights, run_of_weights, write_run_of_weights
from preftune.storage.file_hashes import DamagedError, check_files, size_and_hash
from preftune.storage.run_directory import run_facts
from preftune.storage.run_lock import locked
from preftune.storage.trained_prompts import carry_trained_prompts
from preftune.training.record.earlier_run import (
    checkpoints_in,
    put_aside,
    put_aside_earlier_run,
    run_id_of,
    sweep_unfinished,
    weights_in,
)
from preftune.training.record.limits import Limits
from preftune.training.record.resuming import AUTO, Choice, check_same_run, choose_checkpoint, own_state
from preftune.training.record.run_record import RunRecord, new_id
from preftune.training.record.same_run import best_by, facts_of, is_of_record
from preftune.training.record.scaling import restore_scaling
from preftune.training.record.stopping import StopSignals
from preftune.training.record.trackers import TrackedFacts
from preftune.training.record.whole_checkpoint import CheckpointedTrainer, readable
from preftune.training.setup.arguments import say_unwatched
from preftune.training.setup.self_check import FirstStepCallback
from preftune.training.step import memory

Decided = TypeVar("Decided")


class ResumableTrainer(CheckpointedTrainer):
    """The common base of all trainers; a subclass has what is asked for in the first part."""

    nothing_to_do = False
    """`train` found a run that is finished: its weights are loaded, and its folder is left as it is."""
    _resume_state: dict[str, Any] | None = None
    _resumed_step: int | None = None
    _resumed_from: str | None = None
    _goes_on_here = False
    """The run that is resumed is the one in output_dir."""

    # --- what a subclass says ---

    def check_resumable(self, state: Mapping[str, Any] | None, folder: Path) -> None:
        """Raises, if a checkpoint is of another reference."""

    def begin_training(self, *, resumed: bool) -> None:
        """The check of the first step, and whatever must be done before it."""

    def result_facts(self) -> dict[str, Any]:
        """What run.json says at the end besides steps and outcome."""
        return {}

    def weights_replaced(self) -> None:
        """Called before the weights of a run that has ended are loaded: from then on they are not those received."""

    def load_reference(self, folder: Path) -> None:
        """Puts back the reference that a checkpoint holds, where it follows the policy."""

    def lose_reference(self, step: int) -> None:
        """Called where no checkpoint holds the reference of the weights of a step, which were loaded."""

    def recall(self, state: Mapping[str, Any]) -> None:
        """What the report of a run's end needs, from the last checkpoint of a run that has ended."""

    # --- training ---

    def attach_record(self, facts: Mapping[str, Any]) -> None:
        """What every trainer is watched by: its record, also for trackers, the check of the first step, its limits."""
        self._signals = StopSignals()
        self._record, self.limits = RunRecord(self.args.output_dir, dict(facts)), Limits(self)
        tracked = TrackedFacts(self, lambda: self._record.facts)
        for callback in (_Beginning(self), self._record, tracked, FirstStepCallback(self), self.limits):
            self.add_callback(callback)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Check the first step, train, and record the outcome.

        Args:
            resume_from_checkpoint: a checkpoint folder; True for the newest complete one of the run in output_dir;
                "auto" for the same, or a new run without one.
        """
        if not isinstance(resume_from_checkpoint, str | os.PathLike | bool | None):
            raise ConfigError(
                f"train() was given {resume_from_checkpoint!r:.80}. Its argument is resume_from_checkpoint: a "
                "checkpoint folder, True for the newest one, or 'auto'. Set the length of the training with max_steps "
                "and num_train_epochs of the configuration."
            )
        if isinstance(resume_from_checkpoint, os.PathLike):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
        with locked(self.args.output_dir, writes=self.is_world_process_zero()), self._signals.caught():
            choice, ended = self._settle(resume_from_checkpoint)
            if ended:
                return self._has_ended(choice, ended)
            say_unwatched(self)
            with self._record.ended(self):
                if self.is_world_process_zero():
                    self._record.begin(resumed_step=self._resumed_step)
                self.limits.begin()
                self.begin_training(resumed=choice is not None)
                with memory.explained(self):
                    folder = str(choice.folder) if choice else None
                    result = super().train(folder, trial, ignore_keys_for_eval)
            self._record.end(self, "finished", self.limits.spent(), **self.result_facts(), result=result.metrics)
        return result._replace(training_loss=result.metrics["train_loss"])

    def _settle(self, asked: str | bool | None) -> tuple[Choice | None, str]:
        """The checkpoint to continue from, compared with this run, and why nothing is left to do, if so.

        Everything that can be refused is refused here, before a file of the run directory is changed.
        """
        choice = self._on_first_rank(lambda: choose_checkpoint(asked, self.args.output_dir))
        run = None if choice is None or choice.manifest is None else choice.manifest.run
        self._goes_on_here = run is not None and run == run_id_of(run_facts(Path(self.args.output_dir)))
        self._record.facts["id"] = self._on_first_rank(lambda: run or new_id())
        self._record.facts.pop("resumed_from_step", None)
        self._resume_state = self._resumed_step = None
        self._resume_changed = self._sums_carried_over = self._save_due = self.nothing_to_do = False
        self._saved_step = None
        ended = ""
        if choice is None and asked == AUTO:
            ended = self._on_first_rank(self._why_finished_without_checkpoint)
        elif choice is not None:
            state = own_state(choice, rank=self.args.process_index)
            self.check_resumable(state, choice.folder)
            self._resume_changed = check_same_run(
                choice, facts_of(self), processes=self.args.world_size, allow_changed=self.args.allow_changed
            )
            self._resume_state, self._resumed_step, self._resumed_from = state, choice.step, str(choice.folder)
            planned, reached = self._planned_steps(), self.limits.reached_by((state or {}).get("spent"))
            ended = self._on_first_rank(lambda: self._why_ended(choice, state or {}, planned, reached))
        if not ended:
            self._on_first_rank(lambda: self._clear(choice, restarted=asked == AUTO))
        return choice, ended

    def _on_first_rank(self, decide: Callable[[], Decided]) -> Decided:
        """What the first rank decides, or the error it meets, on every rank."""
        if self.args.world_size == 1:
            return decide()
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                outcome[0] = decide()
            except PreftuneError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        decided: Decided = outcome[0]
        return decided

    def _clear(self, choice: Choice | None, *, restarted: bool) -> None:
        """Leave nothing in the run directory that is of another run, or of later steps than this one begins with.

        Args:
            restarted: the same run may start again; what it left before its first checkpoint is replaced.
        """
        folder = Path(self.args.output_dir)
        sweep_unfinished(folder)
        there = run_id_of(run_facts(folder))
        inside = choice is not None and choice.folder.resolve().parent == folder.resolve()
        if choice is None or not (inside or there in (None, self._record.facts["id"])):
            name = str(getattr(self.model.config, "_name_or_path", ""))
            again = restarted and not checkpoints_in(folder) and is_of_record(self, run_facts(folder))
            put_aside_earlier_run(folder, model=name, overwrite=self.args.overwrite or again)
        elif choice.newer:
            aside = put_aside(folder, choice.newer, f"after-step-{choice.step}")
            say(f"later than the step from which the run continues: {', '.join(choice.newer)}, moved to {aside}.")

    # --- a run that has ended ---

    def _planned_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def _why_ended(self, choice: Choice, state: Mapping[str, Any], planned: int, reached: str | None) -> str:
        """Why no step is left to do; empty if there is one."""
        facts = run_facts(Path(self.args.output_dir))
        if self._is_finished(choice, facts) and not choice.named and not self._resume_changed:
            return f"the run in {self.args.output_dir} is finished, after {counted(facts.get('steps') or 0, 'step')}"
        if choice.step >= planned:
            return f"{choice.folder} is at step {choice.step} of {planned}"
        if reached is not None:
            return f"{choice.folder} has reached {reached}={getattr(self.args, reached):,}"
        if state.get("ended") == "callback" and not self.args.allow_changed:
            return f"a callback ended the run at step {choice.step} (allow_changed trains on)"
        return ""

    def _why_finished_without_checkpoint(self) -> str:
        """A finished run that wrote no checkpoints, with the settings and data of this one."""
        facts = run_facts(Path(self.args.output_dir))
        if facts.get("outcome") != "finished" or not self._has_weights_of(facts) or not is_of_record(self, facts):
            return ""
        return f"the run in {self.args.output_dir} is finished, after {counted(facts.get('steps') or 0, 'step')}"

    def _is_finished(self, choice: Choice | None, facts: Mapping[str, Any]) -> bool:
        """Whether run.json says so, and the final weights are there."""
        if choice is None:
            return True
        same = choice.manifest is not None and run_id_of(dict(facts)) == choice.manifest.run
        return same and facts.get("outcome") == "finished" and self._has_weights_of(facts)

    def _has_weights_of(self, facts: Mapping[str, Any]) -> bool:
        run = run_id_of(dict(facts))
        return run is not None and run_of_weights(Path(self.args.output_dir)) == (run, facts.get("steps"))

    def _has_ended(self, choice: Choice | None, why: str) -> TrainOutput:
        """The state that the run ended with, and its record if that was not written. No step is trained."""
        output, facts = Path(self.args.output_dir), run_facts(Path(self.args.output_dir))
        self.weights_replaced()
        finished = self._on_first_rank(lambda: self._is_finished(choice, facts) and not self._resume_changed)
        if finished or choice is None:
            finished = self._loaded_final(output, choice, facts)
            if choice is not None and choice.step == facts.get("steps"):
                self.load_reference(choice.folder)
            else:
                self.lose_reference(int(facts.get("steps") or 0))
        if choice is not None and not finished:
            self._load_from_checkpoint(str(choice.folder))
        if choice is not None:
            self.state = TrainerState.load_from_json(str(choice.folder / "trainer_state.json"))
            _find_best(self.state, output)
        say(f"nothing to do: {why}.")
        if finished or choice is None:
            self.nothing_to_do = True
            self.state.global_step = int(facts["steps"])
            result = dict(facts.get("result") or {})
            return TrainOutput(self.state.global_step, float(result.get("train_loss") or 0.0), result)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        state, self._resume_state = self._resume_state or {}, None
        self.recall(state)
        self.limits.restore(state.get("spent"))
        loss = (state.get("total_loss", 0.0) + state.get("loss", 0.0)) / max(1, choice.step)
        same = run_id_of(facts) == self._record.facts["id"] and facts.get("steps") == choice.step
        timed = dict(facts.get("result") or {}) if same and facts.get("outcome") == "finished" else {}
        metrics = {**timed, "total_flos": self.state.total_flos, "train_loss": loss, "epoch": self.state.epoch}
        self._on_first_rank(lambda: self._clear(choice, restarted=False))
        if self.is_world_process_zero():
            self._record.begin(resumed_step=choice.step)
            self._record.cut(self.state.log_history if self._goes_on_here else ())
        self.log(dict(metrics))
        self._record.end(self, "finished", state.get("spent") or {}, **self.result_facts(), result=metrics)
        return TrainOutput(choice.step, loss, metrics)

    def _loaded_final(self, output: Path, choice: Choice | None, facts: Mapping[str, Any]) -> bool:
        """Whether the final weights could be loaded; False where a checkpoint holds the same ones."""
        try:
            check_files(output, files_of_weights(output))
            with _files_alone(output) as final:
                self._load_from_checkpoint(final)
            restore_scaling(self.model, output)
        except (CheckpointError, DamagedError) as error:
            why = error.__cause__ or error
            if choice is None or choice.step != facts.get("steps"):
                raise CheckpointError(
                    f"the run in {output} is finished, but its weights cannot be used ({why}). Continue from a "
                    "checkpoint of it (--resume FOLDER), or train again with --overwrite."
                ) from error
            warn(f"the weights in {output} cannot be used ({why}); they are taken from {choice.folder}.")
            return False
        return True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not isinstance(output_dir, str | os.PathLike | None) or output_dir == "":
            raise ConfigError(
                f"save_model() was given {output_dir!r:.80}. Its argument is a folder; without one it saves to "
                f"output_dir ({self.args.output_dir})."
            )
        output_dir = None if output_dir is None else os.fspath(output_dir)
        super().save_model(output_dir, _internal_call)
        if _internal_call or not self.is_world_process_zero():
            return
        if output_dir not in (None, self.args.output_dir):
            carry_trained_prompts(str(self.args.output_dir), Path(output_dir))
        else:
            self.create_model_card()  # first: it asks whether other weights were here
            folder = Path(self.args.output_dir)
            files = {path.name: size_and_hash(path) for path in weights_in(folder)}
            write_run_of_weights(folder, self._record.facts.get("id"), self.state.global_step, files)


@contextmanager
def _files_alone(folder: Path) -> Iterator[str]:
    """A folder with the files of another one, without its folders: PEFT takes those for further adapters."""
    with tempfile.TemporaryDirectory(prefix="preftune-final-") as place:
        for path in folder.iterdir():
            if path.is_file():
                Path(place, path.name).symlink_to(path.resolve())
        yield place


class _Beginning(TrainerCallback):
    """Once a checkpoint is loaded, before the first step: the run's files go back to the step that it begins with."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer._saved_at = time.monotonic()
        if state.is_world_process_zero:
            trainer._record.cut(state.log_history if trainer._goes_on_here else ())
        if trainer.guard is not None:
            with readable(trainer._resumed_from) if trainer._resumed_step is not None else nullcontext():
                trainer.guard.begin(resumed_step=trainer._resumed_step)
        if trainer._resumed_step is None:
            return
        before, now = (trainer._resume_state or {}).get("best_by"), best_by(trainer)
        if before not in (None, now) and state.best_metric is not None:
            _forget_best(state, before, now)
        _find_best(state, Path(args.output_dir))
        state.compute_steps(args, state.max_steps)  # a checkpoint says how often the run saved and logged before
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                _restore_patience(callback, state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._signals.begin_steps()


def _find_best(state: TrainerState, output: Path) -> None:
    """The best checkpoint so far in a run directory that has moved; transformers would forget it."""
    if not state.best_global_step or (state.best_model_checkpoint and Path(state.best_model_checkpoint).is_dir()):
        return
    found = output / f"checkpoint-{state.best_global_step}"
    state.best_model_checkpoint = str(found) if found.is_dir() else None


def _forget_best(state: TrainerState, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The best so far was chosen by other figures, and the next ones do not compare with them."""
    changed = ", ".join(name for name in now if before.get(name) != now[name])
    best = state.best_global_step
    say(f"the next checkpoints are not compared with the best so far (step {best}): {changed} changed.")
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
    kept: Any = state.stateful_callbacks  # by name, whatever transformers' annotation says
    kept.pop("EarlyStoppingCallback", None)


def _restore_patience(callback: EarlyStoppingCallback, state: Any) -> None:
    """transformers counts evaluations without progress from 0 again unless all callbacks are restored."""
    saved = state.stateful_callbacks.get("EarlyStoppingCallback")
    saved = saved[0] if isinstance(saved, list) and saved else saved
    if isinstance(saved, dict):
        name = "early_stopping_patience_counter"
        setattr(callback, name, saved.get("attributes", {}).get(name, 0))
