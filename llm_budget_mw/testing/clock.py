"""A clock for stores in memory that moves only when it is told to."""

from __future__ import annotations


class ManualClock:
    """Milliseconds of the Unix epoch; by default 2027-01-15 12:00 UTC, far from any window's end.

    MemoryStore(clock) counts in windows of this clock.
    """

    def __init__(self, now_ms: int = 1_800_014_400_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Return the time it is."""
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass; raises `ValueError` below zero, as no store goes back."""
        if ms < 0:
            raise ValueError(f"a clock advances: {ms} ms is backwards, make another clock for that")
        self.now_ms += ms
