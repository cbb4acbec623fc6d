"""`CheckpointedTrainer`: checkpoints that are either complete or absent, and the steps at which they are written.

transformers writes a checkpoint into a temporary folder. When all ranks are done, the manifest is written and the
folder is renamed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import rotate_checkpoints

from preftune.errors import CheckpointError, PreftuneError
from preftune.storage.atomic import sync
from preftune.training.record import checkpoint
from preftune.training.record.checkpoint import check_optimizer, check_schedule
from preftune.training.record.earlier_run import WRITING
from preftune.training.record.limits import Limits
from preftune.training.record.manifest import FILE as MANIFEST
from preftune.training.record.manifest import read_manifest, write_manifest
from preftune.training.record.prompt_encoder import is_prompt_encoder_alone, load_prompt_encoder
from preftune.training.record.run_record import RunRecord
from preftune.training.record.same_run import best_by, facts_of
from preftune.training.record.saved_model import SavingTrainer
from preftune.training.record.scaling import is_scaled_as, restore_scaling
from preftune.training.record.stopping import StopSignals, error_of

_CONFIGURED = ("weight_decay", "betas", "eps", "initial_lr")
"""Settings of an optimiser's groups that the configuration makes."""


class CheckpointedTrainer(SavingTrainer):
    """The part of a trainer that writes and reads checkpoints; `ResumableTrainer` adds the choice of a checkpoint."""

    _signals: StopSignals
    _record: RunRecord
    limits: Limits
    _resume_changed = False
    _sums_carried_over = False
    _saved_step: int | None = None
    """The last step that has a checkpoint, until something is logged or evaluated after it."""
    _save_due = False
    _saved_at = 0.0
    _writing: str | None = None
    _push_due = False

    # --- methods for subclasses ---

    def checkpoint_facts(self) -> dict[str, Any]:
        """A method's own state for a checkpoint, as JSON."""
        return {}

    def write_more(self, folder: Path) -> None:
        """Write a method's own files of a checkpoint into `folder`."""

    def may_save(self) -> bool:
        """Whether a run can be continued from a checkpoint of this step."""
        return True

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Within this context, the time does not count in the rates."""
        yield

    # --- when a checkpoint is written ---

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint that is due at the next step from which a run can continue. A signal ends the run at such
        a step; its checkpoint is written before an evaluation, for which the sender of the signal may not wait.
        """
        number, due = self._asked_everywhere()
        self._save_due |= due or self.control.should_save
        may, ends = self.may_save(), self.control.should_training_stop
        self.control.should_save = self._save_due and (may or ends)
        if self.control.should_save:
            self._save_due = False
        stop = number if may else 0
        if stop and self.control.should_evaluate:
            self.control.should_evaluate, save = False, self.control.should_save
            self.control.should_save = self._saves
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.control.should_evaluate, self.control.should_save = True, save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if stop:
            if self._saves and self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model, None)
            raise error_of(stop)

    @property
    def _saves(self) -> bool:
        return str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) != "no"

    def _asked_everywhere(self) -> tuple[int, bool]:
        """The signal that any rank received (0 for none), and whether `save_seconds` have passed on any rank."""
        seconds = self.args.save_seconds
        due = seconds is not None and self._saves and time.monotonic() - self._saved_at >= seconds
        number = self._signals.asked
        if self.args.world_size == 1:
            return number, due
        mine = torch.tensor([[number, int(due)]], device=self.args.device)
        number, due = self.accelerator.gather(mine).max(0).values.tolist()
        return number, bool(due)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._saved_step = None
        found = super().evaluate(*args, **kwargs)
        if self._record.has_ended and Path(self.args.output_dir, "README.md").is_file():
            self.create_model_card()  # again, with these metrics
        return found

    # --- writing ---

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if self._saved_step == step:
            return
        place = Path(self._get_output_dir(trial))
        try:
            with self.untimed(), self._renamed_when_whole(place, step) as folder:
                super()._save_checkpoint(model, trial)
                self.write_more(folder)
                content = {
                    **self.checkpoint_facts(),
                    "loss": float(self._tr_loss),
                    "total_loss": self._total_loss_scalar,
                    "last_logged": self._globalstep_last_logged,
                    "spent": self.limits.state(),
                    "ended": self._ended_by(),
                    "best_by": best_by(self),
                }
                checkpoint.save_state(folder, content, rank=self.args.process_index)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, PreftuneError):
                raise
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written in {place} ({' '.join(str(error).split())}). "
                "Complete ones are kept. Make room on the disk, or remove what is in the way, and continue with "
                "--resume auto, which starts from the beginning if no checkpoint is complete."
            ) from error
        self._saved_step, self._saved_at = step, time.monotonic()

    def _ended_by(self) -> str | None:
        """The limit, or "callback", that ends the run at this step; None if it does not end before its last step."""
        if not self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            return None
        return self.limits.reached or "callback"

    @contextmanager
    def _renamed_when_whole(self, place: Path, step: int) -> Iterator[Path]:
        """Yields the temporary folder, the same on all ranks, and renames it to `checkpoint-STEP` at the end."""
        name = f"checkpoint-{step}"
        partial, final = place / WRITING / name, place / name
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        partial.mkdir(parents=True, exist_ok=True)
        self._writing, self._push_due = str(partial.parent), False
        try:
            yield partial
            self._writing = None
            self.accelerator.wait_for_everyone()
            self._finish_checkpoint(partial, final, step)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            self._writing = None
            shutil.rmtree(place / WRITING, ignore_errors=True)
        if self._push_due:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(output_dir=str(place), save_total_limit=limit, best_model_checkpoint=best)

    def _finish_checkpoint(self, partial: Path, final: Path, step: int) -> None:
        if self.state.best_model_checkpoint == str(partial):
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(str(partial / checkpoint.TRAINER_STATE))  # with the final name of the folder
            write_manifest(
                partial,
                run=self._record.facts["id"],
                step=step,
                processes=self.args.world_size,
                resumable=not self.args.save_only_model,
                facts=facts_of(self),
            )
            _rename(partial, final)
        self.accelerator.wait_for_everyone()
        if partial.exists() and self.args.local_process_index == 0:  # this machine's disk is not shared
            _rename(partial, final)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._writing is not None:
            self._push_due = True  # once it is renamed
            return
        super()._push_from_checkpoint(checkpoint_folder)

    # --- reading ---

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable(resume_from_checkpoint):
            if not is_prompt_encoder_alone(self.model, folder := Path(resume_from_checkpoint)):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_prompt_encoder(self.model, folder)
            if is_scaled_as(self.model, folder):
                restore_scaling(self.model, folder)

    def _load_best_model(self) -> None:
        if not is_prompt_encoder_alone(self.model, folder := Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()
        load_prompt_encoder(self.model, folder)
        restore_scaling(self.model, folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both as transformers does; if settings or the end of the run have changed, apply the new ones."""
        if checkpoint is None:
            return
        fresh = [
            {name: value for name, value in group.items() if name not in ("params", "lr")} for group in self._groups()
        ]
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        made = dict(vars(schedule)) if schedule is not None else {}
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            step, same = self.state.global_step, not self._resume_changed and Path(checkpoint, MANIFEST).is_file()
            if self.optimizer is not None:
                check_optimizer(self.optimizer, fresh, self.model.named_parameters(), step=step, same=same)
            if schedule is not None:
                check_schedule(schedule, made, step=step, same=same)
        if self._resume_changed and self.optimizer is not None:
            self._apply_settings(fresh, made, Path(checkpoint))

    def _apply_settings(self, fresh: list[dict[str, Any]], made: Mapping[str, Any], checkpoint: Path) -> None:
        """Gives the loaded optimiser and schedule the settings of this run.

        Args:
            fresh: settings of the optimiser's groups as the run makes them.
            made: attributes of the schedule as the run makes them.
        """
        asked = {one.partition("=")[0].strip() for one in (self.args.optim_args or "").split(",")}
        for group, new in zip(self._groups(), fresh, strict=True):  # others are counters, of schedule-free ones
            group.update({name: new[name] for name in new if name in {*_CONFIGURED, *asked}})
        schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        for name in {*(self.args.lr_scheduler_kwargs or {})} & made.keys():
            setattr(schedule, name, made[name])
        factors = getattr(schedule, "lr_lambdas", None)
        manifest = read_manifest(checkpoint)
        before = (manifest.facts.get("settings") or {}).get("learning_rate") if manifest is not None else None
        if factors is not None:
            # the last rate of a schedule that had ended is 0, and would be that of the next step
            schedule.base_lrs = made["base_lrs"]
            now = [rate * factor(schedule.last_epoch) for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
        elif isinstance(before, float) and before > 0:  # a schedule that follows a metric knows factors alone
            now = [float(group["lr"]) * float(self.args.learning_rate or 0) / before for group in self._groups()]
        else:
            return
        if schedule is not None:
            schedule._last_lr = now
        for group, rate in zip(self._groups(), now, strict=True):
            group["lr"] = rate

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups if self.optimizer is not None else []

    def _restore_sums(self, state: Mapping[str, Any]) -> None:
        """Restore the sums since the last log, in the first step of a resumed run."""
        if "loss" in state:
            self._tr_loss += state["loss"]
            self._total_loss_scalar, self._sums_carried_over = state["total_loss"], True
            self._globalstep_last_logged = state["last_logged"]
        self.limits.restore(state.get("spent"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._saved_step = None
        if "train_loss" in logs and self._sums_carried_over:  # transformers divides by the steps of this call only
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)
        if "train_loss" in logs:  # transformers' callbacks that print take it out
            logs["total_flos"] = self.state.total_flos


def _rename(partial: Path, final: Path) -> None:
    """Rename a finished folder to its final name, in place of an earlier folder with that name."""
    if final.exists():
        old = partial.with_name(f"{final.name}.old")
        os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(partial, final)
    sync(final.parent)


@contextmanager
def readable(folder: str | None) -> Iterator[None]:
    """Within this context, an error of a library that reads a checkpoint becomes a CheckpointError that names it."""
    try:
        yield
    except PreftuneError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder} cannot be loaded into this run ({type(error).__name__}: {text}). Nothing was trained. Name "
            "another checkpoint, or start a new run."
        ) from error
