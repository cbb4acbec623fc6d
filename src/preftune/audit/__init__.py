"""Checks of preference data before a training.

open_data -> Setting -> audit -> Audit -> write_audit. Only `scoring` and `scoring_by_team` import torch.

`run.audit` makes one pass over the pairs with every check of `checks`.

    checks           the checks
    finding          Finding and Kind
    opening          data for an audit, which training may refuse
    run              audit()
    scoring          log-probabilities of the pairs before training
    scoring_by_team  the same by workers of a cluster
    seen             a pair with its texts, hashes and tokens
    shortcuts        rules that use one feature of the answers
    summaries        percentiles and histograms
    writing          the files of an audit
"""

from __future__ import annotations

from preftune.audit.checks.check import Setting
from preftune.audit.checks.registry import KINDS
from preftune.audit.finding import Finding, Kind
from preftune.audit.opening import open_data
from preftune.audit.run import Audit, audit
from preftune.audit.writing import write_audit

__all__ = [
    "KINDS",
    "Audit",
    "Finding",
    "Kind",
    "Setting",
    "audit",
    "open_data",
    "opening",
    "run",
    "scoring",
    "scoring_by_team",
    "write_audit",
    "writing",
]
