"""Runs in processes of their own that start with the imports of this one."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any


def in_a_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, computed in a process that starts with this one's imports and without its devices."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return {"failed": "the process ended without a result"}
    finally:
        process.join()


def _answer(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFTUNE_CACHE"] = cache
        try:
            sender.send(function(*arguments))
        except Exception as failure:
            traceback.print_exc()
            sender.send({"failed": f"{type(failure).__name__}: {failure}"[:300]})
