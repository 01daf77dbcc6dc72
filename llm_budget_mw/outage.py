"""What happens while the store does not answer: a breaker, a rule for each limit, a queue.

A limit is `closed` (refuse), `open` (admit) or `local` (admit out of a small share this
process may spend by itself). What is settled meanwhile waits, bounded, and is delivered when
the store is back; reservation ids make that exactly once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable

from llm_budget_mw import decision
from llm_budget_mw.config import OutageConfig
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    Charges,
    Decision,
    Grant,
    Limit,
    LimitSet,
    Plan,
    Refusal,
    SubjectLimits,
)


class Breaker:
    """Stops asking a store that does not answer, and lets one call through to see if it does.

    Opens after some failures in a row, for a time that doubles and varies, so that many
    processes do not come back at once.
    """

    def __init__(self, config: OutageConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._openings = 0
        self._closed = True
        self._probing = False
        self._probe_at = 0.0

    def allows(self) -> bool:
        """Return whether to ask the store; while open, one caller at a time may."""
        if self._closed:
            return True
        with self._lock:
            now = self._clock()
            if now < self._probe_at:
                return False
            # Should this probe never report, there is another one after this time.
            self._probing, self._probe_at = True, now + self._config.open_s
            return True

    def failed(self) -> bool:
        """Note a failure; True if it is this one that opened the breaker."""
        with self._lock:
            self._failures += 1
            opens = self._closed and self._failures >= self._config.failures
            # Calls that were under way when it opened fail too, and say nothing new.
            if opens or self._probing:
                self._open()
            return opens

    def succeeded(self) -> bool:
        """Note an answer; True if it is this one that closed the breaker."""
        if self._closed and not self._failures:
            return False
        with self._lock:
            closes, self._closed = not self._closed, True
            self._failures = self._openings = 0
            self._probing = False
            return closes

    def _open(self) -> None:
        pause = min(self._config.open_s * 2**self._openings, self._config.max_open_s)
        self._openings = min(self._openings + 1, 16)
        self._closed = self._probing = False
        # Jitter is no secret; it only keeps processes apart.
        self._probe_at = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311


class Outage:
    """The outage rule of one process."""

    def __init__(self, config: OutageConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.breaker = Breaker(config, clock)
        self.lost = 0
        """Settlements that did not fit the queue."""
        self._capacity = config.queue
        self._queue: deque[tuple[Grant, Charges]] = deque()
        self._lock = threading.Lock()
        self._allowances = MemoryStore()
        self._local_sets: dict[LimitSet, LimitSet] = {}
        self._local_grants: dict[str, Grant] = {}

    def admit(self, plan: Plan) -> Decision:
        """Decide without the store."""
        for entry in plan.subjects:
            for limit in entry.limits.limits:
                if limit.on_outage == "closed":
                    return decision.store_down(plan, limit)
        subjects = tuple(
            SubjectLimits(entry.subject, limits)
            for entry in plan.subjects
            if (limits := self._local_set(entry.limits)).limits
        )
        if not subjects:
            return Grant(plan, plan.offers[0], plan.offers[0].max_output, None)
        return self._admit_locally(plan, plan._replace(subjects=subjects))

    def settle(self, grant: Grant, charges: Charges) -> None:
        """Settle what this process admitted by itself, if it did."""
        local = self._local_grants.pop(grant.plan.id, None)
        if local:
            self._allowances.settle(local, charges)

    def keep(self, grant: Grant, charges: Charges) -> None:
        """Queue a settlement for the store's return; the newest is lost if there is no room."""
        with self._lock:
            if len(self._queue) >= self._capacity:
                self.lost += 1
            else:
                self._queue.append((grant, charges))

    def abandon(self, plan: Plan) -> None:
        """Queue the release of an admission whose answer nobody has, or will use."""
        self.keep(Grant(plan, plan.offers[0], 0, None), Charges(0, 0, 0))

    def take(self) -> tuple[Grant, Charges] | None:
        """Take the oldest queued settlement; None if there is none."""
        with self._lock:
            return self._queue.popleft() if self._queue else None

    @property
    def waiting(self) -> int:
        """Number of settlements queued."""
        return len(self._queue)

    def _admit_locally(self, plan: Plan, local: Plan) -> Decision:
        decided = decision.decide(local, self._allowances.admit(local))
        if isinstance(decided, Refusal):
            # Not "used up" and not "too large": the store, once back, may well admit it.
            limit = decided.binding.limit if decided.binding else local.subjects[0].limits.limits[0]
            return decision.store_down(plan, limit)
        self._local_grants[plan.id] = decided
        return Grant(plan, decided.offer, decided.output, None)

    def _local_set(self, limits: LimitSet) -> LimitSet:
        known = self._local_sets.get(limits)
        if known is None:
            known = self._local_sets[limits] = LimitSet(
                tuple(_share(limit) for limit in limits.limits if limit.on_outage == "local")
            )
        return known


def _share(limit: Limit) -> Limit:
    """Return the part of a limit one process may admit by itself."""
    return Limit(limit.name, limit.resource, int(limit.amount * limit.local_share), limit.window)
