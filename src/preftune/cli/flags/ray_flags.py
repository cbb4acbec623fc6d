"""`--ray`: the flags of commands that spread their work over a Ray cluster."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from preftune.cli.flags.seeds import started_ranks
from preftune.errors import RequestError

if TYPE_CHECKING:
    from preftune.workers import Pool


RAY_FLAGS = ("ray", "ray_workers")


def add_ray_options(parser: Any) -> None:
    """Adds `--ray` and `--ray_workers`."""
    group = parser.add_argument_group("a Ray cluster (extra: ray)")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="spread the work over the workers of a cluster; without an address, one that runs here or a new one",
    )
    group.add_argument(
        "--ray_workers", type=int, metavar="N", help="number of workers (one for each GPU, or without any each CPU)"
    )


def open_pool(asked: argparse.Namespace, opened: ExitStack) -> Pool | None:
    """The cluster of `--ray`, until `opened` is closed; None without the flag.

    Raises: RequestError for flags that have no effect or contradict it, or without a cluster.
    """
    if asked.ray is None:
        if asked.ray_workers is not None:
            raise RequestError("--ray_workers has no effect without --ray. Add --ray, or leave it out.")
        return None
    if started_ranks() > 1:
        raise RequestError("--ray has workers of its own: start the command without torchrun.")
    from preftune.workers.ray_pool import RayPool

    return opened.enter_context(RayPool(asked.ray, workers=asked.ray_workers))
