"""`preftune rloo`: trains as `preftune grpo`, with the other answers' mean reward as the baseline."""

from __future__ import annotations

from functools import partial

from preftune.cli.train.grpo import RLOO as METHOD
from preftune.cli.train.train_command import run as run_method

run = partial(run_method, METHOD)
