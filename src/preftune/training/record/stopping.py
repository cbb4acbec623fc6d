"""Signals end a training after the step that is under way, when its checkpoint is written.

Before they kill a process, schedulers send SIGTERM (Kubernetes, preemptible machines, Slurm) or SIGUSR1 (Slurm); a
closed terminal sends SIGHUP, and Ctrl-C SIGINT. A second Ctrl-C ends a training at once.
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
    """What a signal raises: KeyboardInterrupt for Ctrl-C, else `StoppedError`."""
    return KeyboardInterrupt() if number == signal.SIGINT else StoppedError(number)


class StopSignals:
    """Remembers the signal that asks a training to stop. Between steps it is asked for; outside of them it stops at
    once, because there is nothing that a step could still save.
    """

    def __init__(self) -> None:
        self.asked = 0
        """The signal's number; 0 for none."""
        self.stepping = False
        """Steps are under way: the loop will look at `asked`."""
        self._process = os.getpid()

    @contextmanager
    def caught(self, *, ctrl_c: bool = True) -> Iterator[None]:
        """While this is entered, signals come here, except those that the program handles itself or ignores.

        Args:
            ctrl_c: SIGINT too.
        """
        self.asked, self.stepping, self._process = 0, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for name in _NAMES if ctrl_c else _NAMES[1:]:
            number = getattr(signal, name, None)  # Windows has two of them
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, self._catch)
        try:
            yield
        finally:
            self.stepping = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker of the data loader, which inherits the handlers
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if not self.stepping:
            raise error_of(number)
        if self.asked:
            if number == signal.SIGINT and int(os.environ.get("WORLD_SIZE", "1")) == 1:  # torchrun passes it on as well
                raise KeyboardInterrupt
            return
        self.asked = number
        if os.environ.get("RANK", "0") == "0":
            again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
            line = f"preftune: {signal.Signals(number).name}: stopping after this step{again}.\n"
            os.write(2, line.encode())  # a logger may be in the middle of a line
