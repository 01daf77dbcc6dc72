"""What a check says: how bad it is, what was seen, and what to do."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Severity(enum.IntEnum):
    """How bad a finding is; larger is worse."""

    OK = 0
    NOTE = 1
    """Worth knowing, or could not be looked at."""
    WARNING = 2
    """Works, and will surprise someone."""
    DANGER = 3
    """Budgets do not hold, or calls fail."""


class Finding(NamedTuple):
    """One answer of one check."""

    check: str
    """Stable name, such as `store.eviction`."""
    severity: Severity
    seen: str
    remedy: str = ""
    """What to do; empty if there is nothing to do."""


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the worst severity among findings; `OK` if there are none."""
    return max((finding.severity for finding in findings), default=Severity.OK)
