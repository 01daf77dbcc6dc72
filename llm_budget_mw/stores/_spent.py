"""A short memory of who is over a limit, so that a loop of refused calls costs no round trips.

What is settled in a window only grows, so who was refused for that alone stays refused until
the window ends. An operator may change it: therefore nothing is remembered for longer than
`KEPT_MS`, and a change is not reported as made before that time has passed everywhere.
"""

from __future__ import annotations

from llm_budget_mw import decision
from llm_budget_mw.types import Admission, Plan, SubjectLimits

KEPT_MS = 1000
_MOST = 10_000
"""Sets of subjects remembered; beyond it all are forgotten."""


class Spent:
    """The memory of one store; safe for threads, as each step is one operation on a dict."""

    kept_ms = KEPT_MS

    def __init__(self) -> None:
        self._kept: dict[tuple[SubjectLimits, ...], Admission] = {}

    def answer(self, plan: Plan, now_ms: int) -> Admission | None:
        """Return the store's answer to a plan if it can only be a refusal."""
        known = self._kept.get(plan.subjects)
        if known is None:
            return None
        if 0 <= now_ms - known.now_ms < KEPT_MS:
            known = known._replace(now_ms=now_ms)
            return known if decision.is_spent(plan, known) else None
        self._kept.pop(plan.subjects, None)
        return None

    def note(self, plan: Plan, answer: Admission) -> None:
        """Remember a refusal."""
        if answer.offer != 0 or answer.stopped or not decision.is_spent(plan, answer):
            return
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[plan.subjects] = answer
