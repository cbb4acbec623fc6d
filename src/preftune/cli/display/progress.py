"""The progress of a training run: a live table on a terminal, one line per logging step elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from preftune.amounts import duration
from preftune.cli.display.live_table import LiveTable, is_terminal

_SHOWN = {
    "loss": "loss {:.4f}",
    "rewards/margins": "margin {:.3f}",
    "rewards/accuracies": "accuracy {:.0%}",
    "margin": "margin {:.3f}",
    "accuracy": "accuracy {:.0%}",
    "mean_token_accuracy": "token accuracy {:.0%}",
    "objective/scores": "score {:.3f}",
    "objective/kl": "KL {:.2f}",
    "learning_rate": "lr {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
_SHOWN_HELD_OUT = {f"eval_{name}": form.replace("{:.0%}", "{:.1%}") for name, form in _SHOWN.items()} | {
    "eval_calibration_error": "calibration error {:.3f}",
    "eval_win_rate": "win rate {:.1%}",
}


class ShownProgress(TrainerCallback):
    """Replaces transformers' dictionaries and bars; metrics.jsonl has all numbers."""

    def __init__(self) -> None:
        self._table: LiveTable | None = None
        self._alarms = Path()
        self._alarms_read = 0
        self._began = time.perf_counter()
        self._first = 0
        self._is_read = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.perf_counter(), state.global_step
        self._alarms = Path(args.output_dir) / "guard.jsonl"
        self._alarms_read = _size(self._alarms)
        if is_terminal() and state.is_world_process_zero:
            self._table = LiveTable(state.max_steps, first=state.global_step)
            self._table.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._table is not None:
            self._table.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        if self._table is not None:
            self._table.log(state.global_step, logs)
            self._read_alarm()
            return
        line = self._line(logs, state)
        if line is not None and self._is_read:
            try:
                print(line, flush=True)
            except OSError:  # `| head -2`, or a full disk behind `>`: no reason to lose the run
                self._is_read = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._read_alarm()
        self.close()

    def close(self) -> None:
        """Restores the terminal, however the run ended."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _read_alarm(self) -> None:
        """The last line that the guard has written since training began."""
        if self._table is None or (size := _size(self._alarms)) <= self._alarms_read:
            return
        self._alarms_read = size
        try:
            alarm = json.loads(self._alarms.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")[2])
            name, step = str(alarm["name"]).replace("-", " "), alarm["step"]
            self._table.alarm(f"{alarm.get('level', 'alarm')} at step {step}, {name}: {alarm.get('seen', '')}")
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return  # half written: the next look finds it whole

    def _line(self, logs: dict[str, float], state: Any) -> str | None:
        """The line of a log; None for a log with nothing to show, such as the totals at the end."""
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
        return f", {duration(seconds)} left"


def show_progress(trainer: Trainer) -> ShownProgress:
    """Lets `ShownProgress` replace what transformers prints. Close it when the run has ended, however it did."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    shown = ShownProgress()
    trainer.add_callback(shown)
    return shown


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
