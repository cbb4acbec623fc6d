"""Every check, in the order in which their figures are shown. A new check is a class and a line here."""

from __future__ import annotations

from preftune.audit.checks.cheats import CheatsCheck
from preftune.audit.checks.check import Check
from preftune.audit.checks.diversity import DiversityCheck
from preftune.audit.checks.duplicates import DuplicatesCheck
from preftune.audit.checks.labels import LabelsCheck
from preftune.audit.checks.lengths import LengthsCheck
from preftune.audit.checks.reference import ReferenceCheck
from preftune.audit.checks.roles import RolesCheck
from preftune.audit.checks.rows import RowsCheck
from preftune.audit.checks.sides import SidesCheck
from preftune.audit.checks.size import SizeCheck
from preftune.audit.checks.sources import SourcesCheck
from preftune.audit.checks.text import TextCheck
from preftune.audit.checks.tokens import TokensCheck
from preftune.audit.finding import Kind

CHECKS: tuple[type[Check], ...] = (
    RowsCheck,
    SidesCheck,
    DuplicatesCheck,
    CheatsCheck,
    LengthsCheck,
    RolesCheck,
    TokensCheck,
    TextCheck,
    LabelsCheck,
    SourcesCheck,
    DiversityCheck,
    SizeCheck,
    ReferenceCheck,
)

KINDS: dict[str, Kind] = {kind.name: kind for check in CHECKS for kind in check.kinds}
"""Every kind of finding by its name."""
