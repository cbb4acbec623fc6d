"""The limits `max_seconds` and `max_train_tokens` of a run, and its use of both."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from preftune.log import say
from preftune.training.protocol import TrainerView


class Limits(TrainerCallback):
    """Counts a run's seconds and tokens over all its resumes, and ends it after the step that reaches a limit.

    A token counts each time that a training step computes it, on any rank, and when it is sampled for training. The
    reference, evaluations and judges take seconds, but their tokens do not count.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self.seconds, self.tokens = 0.0, 0
        self.reached: str | None = None
        """The field that ended the run."""
        self._since = time.perf_counter()

    def begin(self) -> None:
        """Start the clock, before the reference's scores are computed."""
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Add tokens of this rank."""
        self.tokens += tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tick()
        logs_steps = str(getattr(args.logging_strategy, "value", args.logging_strategy)) == "steps"
        if logs_steps and state.global_step >= state.max_steps:
            control.should_log = True  # logs the steps since the last line, which may be all steps of a short run
        self.reached = self.reached_by({"seconds": self.seconds, "tokens": self.tokens})
        if self.reached is None:
            return
        control.should_training_stop = control.should_log = True
        control.should_save = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
        if state.is_world_process_zero:
            limit = f"{self.reached}={getattr(args, self.reached):,}"
            say(f"{limit} is reached after step {state.global_step}: the run ends here.")

    def spent(self) -> dict[str, float]:
        """Seconds of this process and tokens of all ranks so far. Every rank must call it."""
        self._tick()
        return {"seconds": round(self.seconds, 3), "tokens": self._everywhere(self.tokens)}

    def state(self) -> dict[str, float]:
        """Seconds and tokens of this rank, for a checkpoint."""
        self._tick()
        return {"seconds": self.seconds, "tokens": self.tokens}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Add the seconds and tokens of a checkpoint's run."""
        if state is not None:
            self.seconds += float(state["seconds"])
            self.tokens += int(state["tokens"])

    def reached_by(self, state: dict[str, Any] | None) -> str | None:
        """The field whose limit is reached with these seconds and tokens of a rank; None if no limit is."""
        if state is None:
            return None
        args = self._trainer.args
        if args.max_train_tokens is not None and self._everywhere(state["tokens"]) >= args.max_train_tokens:
            return "max_train_tokens"
        # the ranks' clocks differ, and all ranks must stop at the same step
        if args.max_seconds is not None and self._everywhere(state["seconds"] >= args.max_seconds):
            return "max_seconds"
        return None

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def _everywhere(self, amount: int) -> int:
        """The sum over ranks."""
        if self._trainer.args.world_size == 1:
            return int(amount)
        here = torch.tensor(int(amount), device=self._trainer.args.device)
        return int(self._trainer.accelerator.gather(here).sum())
