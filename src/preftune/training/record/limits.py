"""How long a run may take: stops it after a number of seconds or tokens, and knows what it has used."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback

from preftune.log import say
from preftune.training.protocol import TrainerView


class Limits(TrainerCallback):
    """Counts a run's seconds and tokens over all its resumes, and ends it after the step that reaches a limit.

    A token counts whenever a training step computes it, on every rank, and when it is sampled to be trained on; what
    the reference, evaluation and judges compute does not count in tokens, though it takes its seconds.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self.seconds, self.tokens = 0.0, 0
        self.reached: str | None = None
        """The field that ended the run."""
        self._since = time.perf_counter()

    def begin(self) -> None:
        """The clock starts, before the reference's scores are made."""
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Adds tokens of this rank."""
        self.tokens += tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tick()
        logs_steps = str(getattr(args.logging_strategy, "value", args.logging_strategy)) == "steps"
        if logs_steps and state.global_step >= state.max_steps:
            control.should_log = True  # the steps since the last line; a run shorter than logging_steps has no other
        self.reached = self.reached_by({"seconds": self.seconds, "tokens": self.tokens})
        if self.reached is None:
            return
        control.should_training_stop = control.should_log = True
        control.should_save = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
        if state.is_world_process_zero:
            limit = f"{self.reached}={getattr(args, self.reached):,}"
            say(f"{limit} is reached after step {state.global_step}: the run ends here.")

    def spent(self) -> dict[str, float]:
        """Seconds of this process and tokens of all ranks so far."""
        self._tick()
        return {"seconds": round(self.seconds, 3), "tokens": self._everywhere(self.tokens)}

    def state(self) -> dict[str, float]:
        """For a checkpoint of this rank."""
        self._tick()
        return {"seconds": self.seconds, "tokens": self.tokens}

    def restore(self, state: dict[str, Any] | None) -> None:
        """What an earlier run had used."""
        if state is not None:
            self.seconds += float(state["seconds"])
            self.tokens += int(state["tokens"])

    def reached_by(self, state: dict[str, Any] | None) -> str | None:
        """The limit that a run had reached which had used this much; None for none."""
        if state is None:
            return None
        args = self._trainer.args
        if args.max_train_tokens is not None and self._everywhere(state["tokens"]) >= args.max_train_tokens:
            return "max_train_tokens"
        # ranks have clocks of their own, and must agree
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
