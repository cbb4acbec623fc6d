"""The table of a training run on a terminal: the last steps, held-out numbers, time left and the last alarm."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from preftune.amounts import duration

_ROWS = 8
"""Number of logged steps shown at once."""
_AROUND = 7
"""Lines of the table besides its steps: header, bar, held out, alarm, and space for messages above it."""
_OF_A_SET = ("rewards/margins", "mean_token_accuracy", "margin")
"""Endings of the names of numbers that every evaluation has, without the name of the set."""
_PER_SECOND = 4
_RECENT = 20
"""Number of recent steps used to estimate the remaining time."""


class Column(NamedTuple):
    """One column: the source of its number, and its format."""

    title: str
    metrics: tuple[str, ...]
    form: str
    width: int


_ACCURACY = tuple(
    prefix + name for name in ("rewards/accuracies", "accuracy", "mean_token_accuracy") for prefix in ("", "eval_")
)
COLUMNS = (
    Column("loss", ("loss", "eval_loss"), "{:.4f}", 7),
    Column("reward", ("objective/scores",), "{:.3f}", 7),
    Column("KL", ("objective/kl",), "{:.2f}", 7),
    Column("margin", ("rewards/margins", "eval_rewards/margins", "margin", "eval_margin"), "{:.3f}", 7),
    Column("accuracy", _ACCURACY, "{:.1%}", 8),
    Column("win rate", ("eval_win_rate",), "{:.1%}", 8),
    Column("KL/token", ("guard/kl_per_token",), "{:.3f}", 8),
    Column("length", ("completions/mean_length",), "{:.0f}", 6),
    Column("tokens/s", ("tokens_per_second",), "{:,.0f}", 8),
    Column("lr", ("learning_rate",), "{:.1e}", 7),
)
"""The columns in order of importance: a narrow terminal shows as many as fit, of those that the run has numbers for."""


def is_terminal() -> bool:
    """Whether an animated table may be drawn: on a capable terminal, and not in a log of continuous integration."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "") and not os.environ.get("CI")


class LiveTable:
    """Draws on standard error until it is closed. Text that is printed or logged meanwhile appears above it."""

    def __init__(self, steps: int, *, first: int = 0, console: Console | None = None) -> None:
        """
        Args:
            steps: number of steps of the whole run.
            first: number of steps done by the run that this one resumes.
        """
        self.steps, self.step = steps, first
        self._console = console or Console(stderr=True)
        self._logged: deque[tuple[int, dict[str, float]]] = deque(maxlen=_ROWS)
        self._held_out: tuple[int, dict[str, float]] | None = None
        self._kl: float | None = None
        self._alarm = ""
        self._times: deque[tuple[float, int]] = deque([(time.monotonic(), first)], maxlen=_RECENT + 1)
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file stays in the file
            redirect_stderr=True,
            vertical_overflow="crop",
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def close(self) -> None:
        """Leaves the last table standing, the cursor visible and the streams as they were. May be called twice."""
        self._live.stop()

    def advance(self, step: int) -> None:
        """An optimiser step is done."""
        self.step = step
        self._times.append((time.monotonic(), step))

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """Takes the numbers that the trainer logged at a step: of training, of held-out pairs, or of the guard."""
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        kl = numbers.get("guard/kl_per_token")
        if kl is not None:
            self._kl = kl
            if self._logged:  # the guard looks after the step was logged
                self._logged[-1][1]["guard/kl_per_token"] = kl
        if "loss" in numbers:
            self._logged.append((step, numbers))
        elif any(name.startswith("eval_") and name.endswith(_OF_A_SET) for name in numbers):
            self._held_out = step, _one_set(numbers)

    def alarm(self, words: str) -> None:
        """Shows the last alarm, in one line."""
        self._alarm = " ".join(words.split())

    def render(self) -> RenderableType:
        """The current table, as wide and as high as the terminal allows."""
        width, height = self._console.size
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=False)
        step_width = max(4, len(f"{self.steps:,}"))
        table.add_column("step", justify="right", min_width=step_width, no_wrap=True)
        seen = {name for _, numbers in self._logged for name in numbers}
        columns = _fitting([one for one in COLUMNS if seen.intersection(one.metrics)], width - step_width - 2)
        for column in columns:
            table.add_column(column.title, justify="right", min_width=column.width, no_wrap=True)
        for step, numbers in list(self._logged)[-max(1, height - _AROUND) :]:
            table.add_row(f"{step:,}", *(_cell(column, numbers) for column in columns))
        lines: list[RenderableType] = [table] if self._logged else []
        if self._held_out is not None:
            step, numbers = self._held_out
            figures = [f"{c.title} {_cell(c, numbers)}" for c in COLUMNS if _cell(c, numbers)]
            lines.append(_line(f"held out, step {step:,}: {', '.join(figures)}", width))
        lines.append(self._bar(width))
        if self._alarm:
            lines.append(_line(self._alarm, width, style="yellow"))
        return Group(*lines)

    def _bar(self, width: int) -> RenderableType:
        words = f"{self.step:,}/{self.steps:,}"
        left = self.seconds_left()
        if left is not None:
            words += f"  {duration(left)} left"
        room = width - len(words) - 3
        if room < 8:
            return _line(words, width)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=max(1, self.steps), completed=self.step, width=min(40, room)), words)
        return bar

    def seconds_left(self) -> float | None:
        """At the speed of the last steps; None before the first."""
        (began, first), (now, done) = self._times[0], self._times[-1]
        if done <= first or self.step >= self.steps:
            return None
        return (now - began) / (done - first) * (self.steps - done)


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The first columns that fit, at least one."""
    if not columns:
        return []
    shown, used = [columns[0]], columns[0].width
    for column in columns[1:]:
        used += column.width + 2
        if used > width:
            break
        shown.append(column)
    return shown


def _cell(column: Column, numbers: Mapping[str, float]) -> str:
    return next((column.form.format(numbers[name]) for name in column.metrics if name in numbers), "")


def _one_set(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a named held-out set, under names without the set's name."""
    name = next(name for name in numbers if name.endswith(_OF_A_SET))
    prefix = name[: -len(next(end for end in _OF_A_SET if name.endswith(end)))]
    return {f"eval_{name[len(prefix) :]}": value for name, value in numbers.items() if name.startswith(prefix)}


def _line(words: str, width: int, *, style: str = "") -> Text:
    text = Text(words, style=style, no_wrap=True)
    text.truncate(max(1, width - 1), overflow="ellipsis")
    return text
