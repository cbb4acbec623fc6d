"""What is wrong with preference data, before anything is trained on them.

open_data -> Setting -> audit -> Audit -> write_audit. Importable without torch; only `scoring` brings it.

`run.audit` makes one pass over the pairs with every check of `checks`.

    checks     the checks
    finding    Finding and Kind
    opening    data opened even where training would refuse it
    run        audit()
    scoring    log-probabilities of the pairs before training
    seen       one pair as checks see it
    shortcuts  rules that look at one feature
    summaries  arrays as a few numbers
    writing    the files of an audit
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
    "write_audit",
    "writing",
]
