"""What is worth telling of a limit: how far it is used, and that it is used unusually fast.

Whoever counts finds these out and hands them over; `events` says how they are told.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_budget_mw.types import Limit, Subject


class Crossing(NamedTuple):
    """A settlement took a limit past one of the configured thresholds."""

    subject: Subject
    limit: Limit
    threshold: float
    """Part of the amount: 0.8 is 80 %."""
    used: int
    """Settled in the unit of the limit, just after it was crossed."""
    amount: int
    """What the limit was then, additions included."""
    window_start_ms: int
    """Start of the window in which it counts; 0 where it never ends."""


class Anomaly(NamedTuple):
    """More of a limit was used within minutes than is usual in whole days."""

    subject: Subject
    limit: Limit
    spent: int
    """In the unit of the limit, within the last `minutes`."""
    minutes: int
    usual: int
    """In a day, as far as it is known."""
