"""What happens while the store does not answer: a breaker, a rule for each limit, a queue.

A limit is `closed` (refuse), `open` (admit) or `local` (admit out of the part of a small share
that the slot of this process is worth). What is settled meanwhile waits, bounded, and is
delivered when the store is back; reservation ids make that exactly once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llm_budget_mw import decision, forks
from llm_budget_mw.allowance import Slot, part, share
from llm_budget_mw.config import OutageConfig
from llm_budget_mw.diagnosis.limits import lengths_ms
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Charges,
    Decision,
    Grant,
    Limit,
    LimitSet,
    Plan,
    Refusal,
    SubjectLimits,
)

KEEP_S = 86_400.0
"""How long a settlement waits: the store knows that long whether it had it already."""
_BEHIND_S = 1.0
"""How much later than whoever keeps it up a request asks whether the store is back."""


class Breaker:
    """Stops asking a store that does not answer, and lets one call through to see if it does.

    Opens after some failures in a row, for a time that doubles and varies, so that many
    processes do not come back at once.
    """

    def __init__(self, config: OutageConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.attended = False
        """Whether somebody beside the requests asks, so that none of them has to wait for it."""
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._openings = 0
        self._closed = True
        self._probing = False
        self._probe_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the store answers, as far as is known."""
        return self._closed

    def after_fork(self) -> None:
        """Have a lock that nobody holds, and nobody beside the requests."""
        self._lock = threading.Lock()
        self.attended = False

    def allows(self) -> bool:
        """Return whether to ask the store; while open, one caller at a time may."""
        return self._closed or self.probes(_BEHIND_S if self.attended else 0.0)

    def probe_in(self) -> float:
        """Return the seconds until an open breaker lets a caller ask."""
        return max(0.0, self._probe_at - self._clock())

    def probes(self, behind_s: float = 0.0) -> bool:
        """Like `allows`, for those who stay behind others by so much, or are the others."""
        with self._lock:
            now = self._clock()
            if self._closed or now < self._probe_at + behind_s:
                return self._closed
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


class Kept(NamedTuple):
    """A settlement that waits for the store."""

    grant: Grant
    charges: Charges
    at: float
    """Since when, by the clock of the process."""


class Outage:
    """The outage rule of one process; `slot` says what it may admit of `local` limits."""

    def __init__(
        self,
        config: OutageConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        shared: bool = True,
        local: bool = True,
    ) -> None:
        self.config = config
        self.shared = shared
        """Whether the store is one that other processes use; all shares are ours if not."""
        self.breaker = Breaker(config, clock)
        self.slot = Slot(config, wanted=shared and local, clock=clock)
        self.lost = 0
        """Settlements that did not fit the queue, or waited for too long."""
        self.clock = clock
        self._begin()
        forks.register(self)

    def after_fork(self) -> None:
        """Leave to the parent what it has: its slot, its calls, its queue."""
        self.breaker.after_fork()
        self.slot.after_fork()
        self._begin()

    def _begin(self) -> None:
        self._queue: deque[Kept] = deque()
        self._lock = threading.Lock()
        self._allowances = MemoryStore()
        self._local_sets: dict[tuple[LimitSet, int], LimitSet] = {}
        self._local_grants: dict[str, Grant] = {}

    def admit(self, plan: Plan) -> Decision:
        """Decide without the store."""
        number = 1 if not self.shared else self.slot.number
        for entry in plan.subjects:
            for limit in entry.limits.limits:
                if limit.on_outage == "closed" or (limit.on_outage == "local" and not number):
                    return decision.store_down(plan, limit)
        subjects = tuple(
            SubjectLimits(entry.subject, limits)
            for entry in plan.subjects
            if (limits := self._local_set(entry.limits, number)).limits
        )
        if not subjects:
            return Grant(plan, plan.offers[0], plan.offers[0].max_output, None)
        # What expires here is charged: the call may still run.
        return self._admit_locally(plan, plan._replace(subjects=subjects, charge_on_expiry=True))

    def grow(self, grant: Grant, output: int) -> int:
        """Return the output a running call may have without the store; see `Store.grow`.

        Of `local` limits the slot has to hold the whole call, also if the store held its
        beginning.
        """
        limits = [limit for entry in grant.plan.subjects for limit in entry.limits.limits]
        if any(limit.on_outage == "closed" for limit in limits):
            return grant.output
        local = self._local_grants.get(grant.plan.id)
        if local is not None:
            if self.shared and not self.slot.number:
                return grant.output
            return max(grant.output, self._allowances.grow(local, output))
        whole = grant.offer._replace(max_output=output, min_output=output)
        decided = self.admit(grant.plan._replace(offers=(whole,)))
        return output if isinstance(decided, Grant) else grant.output

    def renew(self, grant: Grant) -> bool:
        """Prolong the lease of a call this process admitted by itself; False if it did not."""
        local = self._local_grants.get(grant.plan.id)
        return local is not None and self._allowances.renew(local)

    def settle(self, grant: Grant, charges: Charges) -> None:
        """Settle what this process admitted by itself, if it did."""
        local = self._local_grants.pop(grant.plan.id, None)
        if local:
            self._allowances.settle(local, charges)

    def keep(self, grant: Grant, charges: Charges, waited_s: float = 0.0) -> None:
        """Queue a settlement for the store's return; the newest is lost if there is no room."""
        kept = Kept(grant, charges, self.clock() - waited_s)
        with self._lock:
            if len(self._queue) >= self.config.queue or waited_s > KEEP_S:
                self.lost += 1
            else:
                self._queue.append(kept)

    def put_back(self, kept: Iterable[Kept]) -> None:
        """Queue what was taken and not delivered, behind the others: one may never succeed."""
        with self._lock:
            self._queue.extend(kept)

    def abandon(self, plan: Plan) -> None:
        """Queue the release of an admission whose answer nobody has, or will use."""
        self.keep(Grant(plan, plan.offers[0], 0, None), Charges(0, 0, 0))

    def take(self, most: int = 1) -> list[Kept]:
        """Take the oldest queued settlements; those that waited for too long are lost."""
        taken: list[Kept] = []
        with self._lock:
            oldest = self.clock() - KEEP_S
            while self._queue and len(taken) < most:
                kept = self._queue.popleft()
                if kept.at < oldest:
                    self.lost += 1
                else:
                    taken.append(kept)
        return taken

    def queued(self) -> list[Kept]:
        """Return what waits; it goes on waiting."""
        with self._lock:
            return list(self._queue)

    @property
    def waiting(self) -> int:
        """Number of settlements queued."""
        return len(self._queue)

    @property
    def room(self) -> int:
        """Number of settlements that could still be queued."""
        return self.config.queue - len(self._queue)

    def _admit_locally(self, plan: Plan, local: Plan) -> Decision:
        decided = decision.decide(local, self._allowances.admit(local))
        if isinstance(decided, Refusal):
            # Not "used up" and not "too large": the store, once back, may well admit it.
            limit = decided.binding.limit if decided.binding else local.subjects[0].limits.limits[0]
            return decision.store_down(plan, limit)
        self._local_grants[plan.id] = decided
        return Grant(plan, decided.offer, decided.output, None)

    def _local_set(self, limits: LimitSet, number: int) -> LimitSet:
        known = self._local_sets.get((limits, number))
        if known is None:
            slots = self.config.processes if self.shared else 1
            parts = [
                part(limit, number, slots) for limit in limits.limits if limit.on_outage == "local"
            ]
            known = self._local_sets[limits, number] = LimitSet(tuple(parts))
        return known


def exposure(limits: Iterable[Limit], config: OutageConfig) -> int | None:
    """Return the nano-dollars that one subject can cost at most while the store is away.

    0 if a limit refuses then; None if nothing bounds it. Slots are good for `local_s`, in which
    a window may turn.
    """
    most: int | None = None
    for limit in limits:
        if limit.shadow:
            continue
        if limit.on_outage == "closed":
            return 0
        if limit.on_outage == "local" and limit.resource == "cost":
            shortest, _ = lengths_ms(limit.window)
            windows = 1 + -(-config.local_s * 1000 // shortest)
            most = min(share(limit) * windows, most if most is not None else MAX_AMOUNT)
    return most
