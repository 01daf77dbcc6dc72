"""What a subject usually spends in a day, and whether it spends that within minutes.

The rule of `compare` in `lua/settle.lua`, for the store in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DAY_MS = 86_400_000
MINUTES_MS = 600_000
"""The minutes whose sum is compared with a day."""
_KNOWN_DAYS = 3


@dataclass(slots=True)
class Baseline:
    """What is known of one subject, in the unit of the limit that tells."""

    day: int
    minutes: int
    today: int = 0
    recent: int = 0
    told_on: int = 0
    means: list[int] = field(default_factory=lambda: [-1] * 7)
    """For each day of the week; -1 is unknown."""


def compare(known: Baseline, spent: int, now_ms: int, factor: float, least: int) -> int | None:
    """Note what was spent; return what is usual if that is worth telling, once a day."""
    day, minutes = now_ms // DAY_MS, now_ms // MINUTES_MS
    if known.day < day:
        place = known.day % 7
        mean = known.means[place]
        known.means[place] = known.today if mean < 0 else math.floor(0.7 * mean + 0.3 * known.today)
        known.day, known.today = day, 0
    if known.minutes < minutes:
        known.minutes, known.recent = minutes, 0
    known.today += spent
    known.recent += spent
    days = [mean for mean in known.means if mean >= 0]
    usual = known.means[day % 7]
    if usual < 0 and days:
        usual = sum(days) // len(days)
    enough = len(days) >= _KNOWN_DAYS and known.recent >= least
    if not enough or known.told_on == day or known.recent <= usual * factor:
        return None
    known.told_on = day
    return usual
