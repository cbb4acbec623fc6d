"""Several questions under way at once; Ctrl-C lets them finish, so that no answer that was paid for is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

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
    """Calls `function` on every item, `workers` at a time, and `take` with each result as it comes, in this thread.

    The first Ctrl-C begins nothing new and takes what is under way; a second one does not wait for it. When `function`
    raises, the others under way are taken too, and then the first error is raised.

    Raises: KeyboardInterrupt after Ctrl-C, and whatever `function` or `take` raises.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="preftune")
    remaining = iter(items)
    waiting: dict[Future[Result], Item] = {}
    failed: BaseException | None = None
    try:
        with _patient_interrupt(waiting) as stopped:
            while True:
                while failed is None and not stopped.is_set() and len(waiting) < workers:
                    item: Any = next(remaining, _END)
                    if item is _END:
                        break
                    waiting[pool.submit(function, item)] = item
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    item = waiting.pop(future)
                    error = future.exception()
                    if error is None:
                        take(item, future.result())
                    else:
                        failed = failed or error
        if failed is not None:
            raise failed
        if stopped.is_set():
            raise KeyboardInterrupt
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _patient_interrupt(waiting: dict[Any, Any]) -> Iterator[threading.Event]:
    """While this is entered, a first Ctrl-C only sets the event; the next one does what it did before."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)
        say(f"stopping: waiting for {len(waiting)} answers under way (Ctrl-C again does not wait)")

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
