"""Several questions at once; Ctrl-C lets them finish, so that no paid answer is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from preftune.amounts import counted
from preftune.log import say

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def in_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    take: Callable[[Item, Result], None],
) -> None:
    """Calls `function` on every item, `workers` at a time, and `take` with each result when it arrives, in this thread.

    After the first Ctrl-C no new call is started, and running calls are completed; a second Ctrl-C does not wait for
    them. If `function` raises, the other running calls are completed too, and then the first error is raised.

    Raises: KeyboardInterrupt after Ctrl-C, and the errors of `function` and `take`.
    """
    remaining = iter(items)
    results: SimpleQueue[tuple[Item, Any, BaseException | None]] = SimpleQueue()
    waiting = 0
    failed: BaseException | None = None

    def call(item: Item) -> None:
        try:
            results.put((item, function(item), None))
        except BaseException as error:
            results.put((item, None, error))

    with _patient_interrupt(lambda: waiting) as stopped:
        while True:
            while failed is None and not stopped.is_set() and waiting < workers:
                item: Any = next(remaining, _END)
                if item is _END:
                    break
                # daemons: the process ends without the answers that it does not wait for
                threading.Thread(target=call, args=(item,), name="preftune", daemon=True).start()
                waiting += 1
            if not waiting:
                break
            item, result, error = results.get()
            waiting -= 1
            if error is None:
                take(item, result)
            else:
                failed = failed or error
    if failed is not None:
        raise failed
    if stopped.is_set():
        raise KeyboardInterrupt


@contextmanager
def _patient_interrupt(waiting: Callable[[], int]) -> Iterator[threading.Event]:
    """Within this context, a first Ctrl-C only sets the event; the next one has its previous effect.

    A handler that is not Python's own is kept: a training has one, which completes the whole round.
    """
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    handled = callable(before) and before is not signal.default_int_handler
    if handled or threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)
        say(f"stopping: waiting for {counted(waiting(), 'pending answer')} (Ctrl-C again does not wait)")

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
