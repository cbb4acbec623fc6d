"""What a training run shows while it runs: one line per logging step, and on a terminal a bar below them."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

_SHOWN = {
    "loss": "loss {:.4f}",
    "rewards/margins": "margin {:.3f}",
    "rewards/accuracies": "accuracy {:.0%}",
    "learning_rate": "lr {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
_SHOWN_HELD_OUT = {
    "eval_loss": "loss {:.4f}",
    "eval_rewards/margins": "margin {:.3f}",
    "eval_rewards/accuracies": "accuracy {:.1%}",
}


class ProgressLines(TrainerCallback):
    """In place of transformers' dictionaries; metrics.jsonl has all numbers."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._began = time.perf_counter()
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.perf_counter(), state.global_step
        if sys.stderr.isatty() and state.is_world_process_zero:
            from tqdm import tqdm

            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        line = self._line(logs, state)
        if line is None:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, logs: dict[str, float], state: Any) -> str | None:
        """None for logs that carry nothing to show, such as the totals at the end."""
        held_out = "eval_loss" in logs
        shown = _SHOWN_HELD_OUT if held_out else _SHOWN
        if not held_out and "loss" not in logs:
            return None
        parts = [form.format(logs[name]) for name, form in shown.items() if name in logs]
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if held_out:
            return f"{step}  held out: {', '.join(parts)}"
        return f"{step}  {', '.join(parts)}{self._left(state)}"

    def _left(self, state: Any) -> str:
        done, left = state.global_step - self._first, state.max_steps - state.global_step
        if done < 1 or left < 1:
            return ""
        seconds = (time.perf_counter() - self._began) / done * left
        return f", {_duration(seconds)} left"


def show_lines(trainer: Any) -> None:
    """Lets `ProgressLines` replace what transformers prints."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressLines())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
