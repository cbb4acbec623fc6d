"""Runs a script as all ranks of one training. What it imports is imported once, before the ranks part.

Usage: forked_ranks.py SCRIPT ARGUMENT..., with WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them. Ends
with 0 if all ranks do.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback


def start(number: int) -> int:
    """Returns: the process of the rank."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def main() -> int:
    import preftune

    del sys.argv[0]
    _ = preftune.DPOTrainer
    runpy.run_path(sys.argv[0], run_name="imported")
    children = [start(number) for number in range(int(os.environ["WORLD_SIZE"]))]
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if os.waitstatus_to_exitcode(status):
            for waiting in children:
                os.kill(waiting, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
