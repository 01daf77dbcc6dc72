"""Keeping a process, or all that share a store, under a provider's own limits.

Calls wait in a line, fair between principals. The first of it goes as soon as no window, from
whatever moment a provider counts, holds more than the limit with it: of this process, and with
a store of all processes together. There each call is a reservation that nobody settles: its
lease is the window, and its end gives the room back. A store that does not answer is left
out, and each process keeps to the limit by itself until it is back.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from llm_budget_mw import decision
from llm_budget_mw.clients.errand import Errand
from llm_budget_mw.clients.headroom import Headroom
from llm_budget_mw.clients.line import Line
from llm_budget_mw.clients.recent import Entry, Recent, UpstreamLimit
from llm_budget_mw.config import OutageConfig
from llm_budget_mw.errors import BudgetExceeded, ConfigurationError, StoreError
from llm_budget_mw.outage import Breaker
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.types import (
    MAX_AMOUNT,
    Admission,
    Charges,
    Grant,
    Limit,
    LimitSet,
    Offer,
    Plan,
    Refusal,
    RefusalReason,
    Subject,
    SubjectLimits,
    Window,
)

_LOOK_AGAIN_S = 1.0
"""The store's room may be given back at any time, by a process we do not hear of."""
_LOOKS = 60
"""In a window, at least."""
_CLEARED = 16
"""Reservations cleared away after each call: more than it leaves, so that they cannot pile up."""
_QUIET_WINDOWS = 1.2
"""After so long without an admission a store may have dropped the account, and all in it."""
_NOTHING = Charges(0, 0, 0)


class PaceExceeded(BudgetExceeded):
    """A call was not sent: its turn under the provider's limit did not come in time.

    `refusal` has no binding limit: those are the provider's, and no business of a caller's.
    """


class _Turn(Protocol):
    def set(self) -> None: ...
    def clear(self) -> None: ...


Turn = TypeVar("Turn", bound=_Turn)


class Place(Generic[Turn]):
    """One call, from joining the line to its settlement."""

    def __init__(
        self, errand: Errand, brake: Callable[[], float], turn: Turn, plan: Plan, until: float
    ) -> None:
        self.errand = errand
        self.brake = brake
        self.turn = turn
        """Set when it is worth looking whether the place may go."""
        self.plan = plan
        self.until = until
        self.entry: Entry | None = None
        """What this process counts; None while it waits."""
        self.grant: Grant | None = None
        """What the store holds, if it was asked."""
        self.in_vain = False
        """True if no model worked on the call: it used a request, and no tokens."""
        self.settled = False


def _no_brake() -> float:
    return 0.0


class _Pace(Generic[Turn]):
    """What the sync and the async pace do alike; nothing here waits."""

    def __init__(self, limit: UpstreamLimit, max_wait_s: float, max_waiting: int) -> None:
        if not 0 < max_wait_s < math.inf:
            raise ConfigurationError(
                f"max_wait_s is {max_wait_s!r}; it has to be a number of seconds above 0"
            )
        if max_waiting < 1:
            raise ConfigurationError(f"max_waiting is {max_waiting!r}; it has to be 1 or more")
        self.limit = limit
        self.headroom = Headroom()
        """What the provider itself says is left."""
        self._max_wait_s = max_wait_s
        self._look_s = min(_LOOK_AGAIN_S, limit.per_s / _LOOKS)
        self._line: Line[Place[Turn]] = Line(max_waiting)
        self._recent = Recent(limit)
        self._lock = threading.Lock()
        self._breaker = Breaker(OutageConfig())
        self._sent: deque[Place[Turn]] = deque()
        """Places that the store may still know of, oldest first."""
        self._held_at = -math.inf
        name = f"pace/{quote(limit.name, safe='')}"
        subject = Subject(name, name)
        self._subjects = (SubjectLimits(subject, _limits(limit.requests, limit.tokens)),)
        # What was used is counted also where it does not fit any more.
        boundless = _limits(limit.requests and MAX_AMOUNT, limit.tokens and MAX_AMOUNT)
        self._boundless = (SubjectLimits(subject, boundless),)

    @property
    def waiting(self) -> int:
        """Number of calls in the line."""
        return len(self._line)

    def _join(
        self, errand: Errand, brake: Callable[[], float], turn: Turn, now: float
    ) -> Place[Turn]:
        lease_ms = math.ceil(self.limit.window_s * 1000)
        plan = self._plan(self.limit.weight(errand.tokens), self._subjects, lease_ms)
        place = Place(errand, brake, turn, plan, now + self._max_wait_s)
        errand.queued = True
        with self._lock:
            if not self._line.join(errand.principal, place):
                raise _refused(place, self._shortest_wait(now), "too many calls wait for it")
        return place

    def _wait_s(self, place: Place[Turn], now: float) -> float:
        """Return how long a place has to wait for all that this process knows of."""
        with self._lock:
            if self._line.head is not place:
                return math.inf
            return max(self._recent.wait_s(place.plan.offers[0].fixed_tokens, now), place.brake())

    def _ahead(self, place: Place[Turn], wait_s: float, now: float) -> float:
        """Return how long to wait now; raises `PaceExceeded` once that is too late."""
        left_s = place.until - now
        if left_s <= 0:
            with self._lock:
                known_s = self._shortest_wait(now) if wait_s == math.inf else wait_s
            raise _refused(place, known_s, "its turn did not come in time")
        return min(wait_s, left_s)

    def _go(self, place: Place[Turn], now: float) -> None:
        with self._lock:
            place.entry = self._recent.add(place.plan.offers[0].fixed_tokens, now)
            if place.grant is not None:
                if now - self._held_at > self.limit.window_s * _QUIET_WINDOWS:
                    self._sent.clear()
                self._held_at = now
                self._sent.append(place)
        place.errand.queued = False

    def _leave(self, place: Place[Turn]) -> None:
        with self._lock:
            self._line.leave(place.errand.principal, place, served=place.entry is not None)
        self._call_head()

    def _call_head(self) -> None:
        with self._lock:
            head = self._line.head
        if head is not None:
            head.turn.set()

    def _read(self, place: Place[Turn], admission: Admission) -> float:
        """Return how long the store makes a place wait."""
        self._breaker.succeeded()
        decided = decision.decide(place.plan, admission)
        if isinstance(decided, Grant):
            place.grant = decided
            return 0.0
        # A plan that was refused may be asked for again, under the same id.
        return self._look_s

    def _correct(self, place: Place[Turn], now: float) -> Plan | None:
        """Count what was used, once; return the plan of what the store is to hold instead."""
        used, entry = 0 if place.in_vain else place.errand.used_tokens, place.entry
        if place.settled or entry is None:
            return None
        place.settled = True
        if used is None or used < 0 or used == entry.tokens:
            return None
        with self._lock:
            self._recent.correct(entry, used)
        self._call_head()
        lease_ms = math.ceil((entry.at + self.limit.window_s - now) * 1000)
        if lease_ms <= 0 or place.grant is None:
            return None
        return self._plan(used, self._boundless, lease_ms)

    def _replaced(self, place: Place[Turn], plan: Plan, admission: Admission) -> Grant | None:
        """Note what the store holds now; return what it has to let go."""
        before, decided = place.grant, decision.decide(plan, admission)
        if isinstance(decided, Grant):
            place.grant = decided
            return before
        return None

    def _over(self, now: float) -> list[Grant]:
        """Return reservations whose window is over: the store keeps a mark of each for a day."""
        over: list[Grant] = []
        window_s = self.limit.window_s
        with self._lock:
            while self._sent and len(over) < _CLEARED:
                place = self._sent[0]
                age_s = now - place.entry.at if place.entry else math.inf
                if age_s < window_s:
                    break
                self._sent.popleft()
                if place.grant is not None:
                    over.append(place.grant)
        return over

    def _plan(self, tokens: int, subjects: tuple[SubjectLimits, ...], lease_ms: int) -> Plan:
        offer = Offer("upstream", 0, 0, 1.0, min(tokens, MAX_AMOUNT), 0, 0, 0)
        return Plan(os.urandom(12).hex(), subjects, (offer,), lease_ms, charge_on_expiry=False)

    def _shortest_wait(self, now: float) -> float:
        return self._recent.wait_s(0, now) or _LOOK_AGAIN_S


class Pace(_Pace[threading.Event]):
    """The pace of threads.

    `store` makes all processes with the same limit's name keep it together. A call waits at
    most `max_wait_s`, and no more than `max_waiting` do.
    """

    def __init__(
        self,
        limit: UpstreamLimit,
        *,
        store: Store | None = None,
        max_wait_s: float = 30.0,
        max_waiting: int = 1000,
    ) -> None:
        super().__init__(limit, max_wait_s, max_waiting)
        self._store = store

    def enter(
        self, errand: Errand, brake: Callable[[], float] = _no_brake
    ) -> Place[threading.Event]:
        """Wait for a call's turn; raises `PaceExceeded` where it does not come.

        `brake` returns seconds for which the call has to wait anyway.
        """
        place = self._join(errand, brake, threading.Event(), time.monotonic())
        try:
            while True:
                place.turn.clear()
                wait_s = self._try(place)
                if not wait_s:
                    self._go(place, time.monotonic())
                    return place
                place.turn.wait(self._ahead(place, wait_s, time.monotonic()))
        finally:
            self._leave(place)

    def settle(self, place: Place[threading.Event]) -> None:
        """Put what a call used, if its errand knows that, in place of the estimate; once."""
        now = time.monotonic()
        plan = self._correct(place, now)
        if self._store is None or not self._breaker.allows():
            return
        try:
            if plan is not None:
                before = self._replaced(place, plan, self._store.admit(plan))
                self._let_go(self._store, [before] if before else [])
                self._call_head()
            self._let_go(self._store, self._over(now))
        except StoreError:
            self._breaker.failed()  # what is held ends with its lease

    def _let_go(self, store: Store, grants: list[Grant]) -> None:
        for grant in grants:
            store.settle(grant, _NOTHING)

    def _try(self, place: Place[threading.Event]) -> float:
        wait_s = self._wait_s(place, time.monotonic())
        if wait_s or self._store is None or not self._breaker.allows():
            return wait_s
        try:
            return self._read(place, self._store.admit(place.plan))
        except StoreError:
            self._breaker.failed()
            return 0.0


class AsyncPace(_Pace[asyncio.Event]):
    """The pace of one event loop; see `Pace`."""

    def __init__(
        self,
        limit: UpstreamLimit,
        *,
        store: AsyncStore | None = None,
        max_wait_s: float = 30.0,
        max_waiting: int = 1000,
    ) -> None:
        super().__init__(limit, max_wait_s, max_waiting)
        self._store = store
        self._running: set[asyncio.Task[None]] = set()

    async def enter(
        self, errand: Errand, brake: Callable[[], float] = _no_brake
    ) -> Place[asyncio.Event]:
        """Like `Pace.enter`; one that is cancelled leaves no place taken."""
        clock = asyncio.get_running_loop().time
        place = self._join(errand, brake, asyncio.Event(), clock())
        try:
            while True:
                place.turn.clear()
                wait_s = await self._try(place, clock())
                if not wait_s:
                    self._go(place, clock())
                    return place
                await _wait(place.turn, self._ahead(place, wait_s, clock()))
        finally:
            self._leave(place)

    def settle(self, place: Place[asyncio.Event]) -> None:
        """Like `Pace.settle`; the store hears of it later, and nobody waits for that."""
        now = asyncio.get_running_loop().time()
        plan = self._correct(place, now)
        if self._store is not None and self._breaker.allows():
            self._start(self._post(self._store, place, plan, self._over(now)))

    async def close(self) -> None:
        """Wait for what the store has not heard yet."""
        await asyncio.gather(*self._running)

    async def _try(self, place: Place[asyncio.Event], now: float) -> float:
        wait_s = self._wait_s(place, now)
        if wait_s or self._store is None or not self._breaker.allows():
            return wait_s
        asking = asyncio.ensure_future(self._store.admit(place.plan))
        try:
            return self._read(place, await asyncio.shield(asking))
        except StoreError:
            self._breaker.failed()
            return 0.0
        except asyncio.CancelledError:
            self._start(self._give_back(self._store, place, asking))
            raise

    async def _give_back(
        self, store: AsyncStore, place: Place[asyncio.Event], asking: asyncio.Future[Admission]
    ) -> None:
        """Release what the store may have held for a call that was cancelled meanwhile."""
        try:
            self._read(place, await asking)
            await self._let_go(store, [place.grant] if place.grant else [])
        except StoreError:
            self._breaker.failed()  # what is held ends with its lease

    async def _post(
        self,
        store: AsyncStore,
        place: Place[asyncio.Event],
        plan: Plan | None,
        over: list[Grant],
    ) -> None:
        try:
            if plan is not None:
                before = self._replaced(place, plan, await store.admit(plan))
                await self._let_go(store, [before] if before else [])
                self._call_head()
            await self._let_go(store, over)
        except StoreError:
            self._breaker.failed()  # what is held ends with its lease

    async def _let_go(self, store: AsyncStore, grants: list[Grant]) -> None:
        for grant in grants:
            await store.settle(grant, _NOTHING)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _wait(turn: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await turn.wait()
    except TimeoutError:
        pass


def _limits(requests: int | None, tokens: int | None) -> LimitSet:
    endless = Window("none")
    limits: list[Limit] = []
    if requests is not None:
        limits.append(Limit("upstream-requests", "concurrency", requests, endless))
    if tokens is not None:
        limits.append(Limit("upstream-tokens", "tokens", tokens, endless))
    return LimitSet(tuple(limits))


def _refused(place: Place[Any], wait_s: float, why: str) -> PaceExceeded:
    message = f"The call was not sent: the provider takes no more at the moment, and {why}."
    wait_ms = math.ceil(wait_s * 1000)
    return PaceExceeded(Refusal(place.plan, RefusalReason.BUSY, None, (), wait_ms, None, message))
