"""`preftune nash-md`: a policy gradient on the probability of winning against a mixture of policy and reference."""

from __future__ import annotations

from functools import partial

from preftune.cli.train.online import NASH_MD as METHOD
from preftune.cli.train.train_command import run as run_method

run = partial(run_method, METHOD)
