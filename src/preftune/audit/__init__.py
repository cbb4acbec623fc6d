"""What is wrong with preference data, before anything is trained on them.

open_data -> Setting -> audit -> Audit -> write_audit. Importable without torch; only `scoring` brings it.
"""

from __future__ import annotations

from preftune.audit.checks.check import Setting
from preftune.audit.checks.registry import KINDS
from preftune.audit.finding import Finding, Kind
from preftune.audit.opening import open_data
from preftune.audit.run import Audit, audit
from preftune.audit.writing import write_audit

__all__ = ["KINDS", "Audit", "Finding", "Kind", "Setting", "audit", "open_data", "write_audit"]
