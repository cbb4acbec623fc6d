"""Signals that end a training after the current step, with a checkpoint.

Schedulers send SIGTERM (Kubernetes, preemptible machines, Slurm) or SIGUSR1 (Slurm) before they kill a process; a
closed terminal sends SIGHUP, and Ctrl-C sends SIGINT. A second Ctrl-C ends a training of one process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StoppedError(SystemExit):
    """A signal other than Ctrl-C has ended a training. The exit code is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number).name
        self.exit_code = 128 + number
        super().__init__(self.exit_code)


def error_of(number: int) -> BaseException:
    """The exception of a signal: KeyboardInterrupt for Ctrl-C, otherwise `StoppedError`."""
    return KeyboardInterrupt() if number == signal.SIGINT else StoppedError(number)


class StopSignals:
    """Records the signal that asks a training to stop. While steps run, the training loop reads it after each step;
    before and after them the signal raises at once, because no step is to be saved.
    """

    def __init__(self) -> None:
        self.asked = 0
        """The signal's number; 0 before a signal."""
        self.stepping = False
        """Whether steps are running, so that the loop reads `asked`."""
        self._process = os.getpid()

    @contextmanager
    def caught(self, *, ctrl_c: bool = True) -> Iterator[None]:
        """Within this context, this object handles the signals, except those that the program handles itself or
        ignores. Outside of the main thread it handles no signal.

        Args:
            ctrl_c: whether SIGINT is handled too.
        """
        self.asked, self.stepping, self._process = 0, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for name in _NAMES if ctrl_c else _NAMES[1:]:
            number = getattr(signal, name, None)  # Windows has only two of them
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, self._catch)
        try:
            yield
        finally:
            self.stepping = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin_steps(self) -> None:
        """From now on, a signal ends the run after a step. Raises: the error of a signal that came before."""
        if self.asked and not self.stepping:
            raise error_of(self.asked)
        self.stepping = True

    def _catch(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which inherits the handlers
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if not self.stepping:
            self.asked = number  # the error may be discarded where it is raised, in a `__del__` for example
            raise error_of(number)
        if self.asked:
            if number == signal.SIGINT and int(os.environ.get("WORLD_SIZE", "1")) == 1:  # torchrun sends it again
                raise KeyboardInterrupt
            return
        self.asked = number
        if os.environ.get("RANK", "0") == "0":
            again = " (a second Ctrl-C stops at once)" if number == signal.SIGINT else ""
            line = f"preftune: {signal.Signals(number).name}: stopping after this step{again}.\n"
            os.write(2, line.encode())  # a logger may be in the middle of a line
