"""`preftune xpo`: trains as `preftune online`, with pairs of an answer of the policy and one of the reference."""

from __future__ import annotations

from functools import partial

from preftune.cli.train.online import XPO as METHOD
from preftune.cli.train.train_command import run as run_method

run = partial(run_method, METHOD)
