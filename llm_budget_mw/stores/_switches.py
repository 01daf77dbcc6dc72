"""What operators have stopped, applied to a plan; and a copy of it where asking costs a round trip.

On a cluster the switchboard is on a server of its own: asking it for each admission would double
the round trips and make one server everybody's. A process keeps a copy for a second there, and a
change is not reported as made before that has passed everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_budget_mw.stores._additions import in_force
from llm_budget_mw.types import STOPPED, Admission, Plan

KEPT_MS = 1000
_RENEWED_MS = 700
"""How old a copy is when one of its users asks anew, while the others still go by it."""
_ANSWER_MS = 300
"""How long that one may take before another asks."""
_LASTS_MS = 60_000
"""How old a copy may be while its server does not answer."""


def barred(plan: Plan, stopped: Mapping[str, str], now_ms: int) -> tuple[int, int]:
    """Return the offers whose model is stopped, a bit each, and what stops the call: 0 nothing."""
    models = stop = 0
    for number, name in enumerate(plan.switches if stopped else ()):
        value = stopped.get(name)
        if value is None or not in_force(int(value.partition(" ")[0]), now_ms):
            continue
        if number < len(plan.offers):
            models |= 1 << number
        else:
            stop = stop or number + 1
    return models, stop


def answer(plan: Plan, stopped: Mapping[str, str], now_ms: int) -> Admission:
    """Return the answer to a plan by what is stopped alone: the first offer that is not."""
    models, stop = barred(plan, stopped, now_ms)
    if stop:
        return Admission(now_ms, STOPPED, stop, (), models)
    for number, offer in enumerate(plan.offers):
        if not models >> number & 1 and offer.max_output >= offer.min_output:
            return Admission(now_ms, number + 1, offer.max_output, (), models)
    return Admission(now_ms, 0, 0, (), models)


class Copy:
    """What was stopped when it was last asked for."""

    kept_ms = KEPT_MS

    def __init__(self) -> None:
        self._stopped: Mapping[str, str] = {}
        self._at_ms: int | None = None
        self._asked_until_ms = 0

    def fresh(self, now_ms: int) -> Mapping[str, str] | None:
        """Return the copy, unless who asks for it is to ask the store: one in time, all too late."""
        if self._younger(_RENEWED_MS, now_ms) is None and now_ms >= self._asked_until_ms:
            self._asked_until_ms = now_ms + _ANSWER_MS
            return None
        return self._younger(KEPT_MS, now_ms)

    def last(self, now_ms: int) -> Mapping[str, str] | None:
        """Return the copy if it may still serve while nobody answers."""
        return self._younger(_LASTS_MS, now_ms)

    def note(self, stopped: Mapping[str, str], now_ms: int) -> Mapping[str, str]:
        """Keep what was stopped at the time it was asked for."""
        self._stopped, self._at_ms = stopped, now_ms
        return stopped

    def _younger(self, age_ms: int, now_ms: int) -> Mapping[str, str] | None:
        at_ms = self._at_ms
        return self._stopped if at_ms is not None and 0 <= now_ms - at_ms < age_ms else None
