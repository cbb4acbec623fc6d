"""`--seeds` of a training command: what each seed's command says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from preftune.errors import RequestError


def started_ranks() -> int:
    """The number of processes that torchrun or the like has started.

    Raises: RequestError if a variable of theirs is not a whole number.
    """
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        try:
            int(os.environ.get(name, "1"))
        except ValueError:
            raise RequestError(
                f"The environment variable {name} is {os.environ[name]!r}, not a whole number. Unset it; torchrun sets "
                "it for the processes that it starts."
            ) from None
    return int(os.environ.get("WORLD_SIZE", "1"))


def words_of_each(words: Sequence[str], seeds: Sequence[int], *, split: bool) -> list[str]:
    """The flags without `--seeds`; all seeds share one held-out split.

    Args:
        split: whether the command holds out a part of its data.
    Raises: RequestError for flags that contradict it.
    """
    given = {word.partition("=")[0].replace("-", "_").strip("_") for word in words if word.startswith("--")}
    if len(set(seeds)) < len(seeds) or len(seeds) < 2:
        raise RequestError(f"--seeds {' '.join(map(str, seeds))}: give at least two different seeds.")
    for name, why in (("seed", "names one seed"), ("resume", "is not needed: the same command continues")):
        if name in given or f"{name}_from_checkpoint" in given:
            raise RequestError(f"--{name} {why}, and --seeds names several. Leave --{name} out.")
    if started_ranks() > 1:
        raise RequestError("--seeds starts a process for each seed. With torchrun, give each seed its own command.")
    kept, skipping = [], False
    for word in words:
        if word.startswith("-"):
            skipping = word.partition("=")[0] == "--seeds"
        if not skipping:
            kept.append(word)
    fixed = ["--split_seed", str(seeds[0])] if split and not given & {"split_seed", "data_seed"} else []
    return [*kept, *fixed]
