"""Settlements on their way to the store, and what keeps a process ready for an outage.

Beside the requests, a thread or a task holds this process's slot, asks a store that was away
whether it is back, and delivers what has waited. A request never does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from llm_budget_mw import events, forks
from llm_budget_mw.errors import StoreError
from llm_budget_mw.events import Event
from llm_budget_mw.outage import Kept, Outage
from llm_budget_mw.spool import Spool
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.types import Charges, Grant
from llm_budget_mw.upkeep import AsyncUpkeep, Upkeep

_log = logging.getLogger(__name__)
_IN_PASSING = 16
"""Queued settlements a call delivers where nothing runs beside the calls."""
_LOT = 24
"""Settlements that leave together."""
_AGAIN_S = 0.1
"""Between attempts to deliver at the end of a process."""
_LOOK_S = 60.0
"""How often to look for what processes that ended left behind."""
_NAME = "llm-budget-upkeep"
Emit = Callable[[Event], None]
Tell = Callable[[str, Grant], None]
"""Is given the reply to each settlement."""


class _Delivery:
    """What both kinds do alike; nothing here waits."""

    def __init__(self, outage: Outage, emit: Emit, tell: Tell) -> None:
        self.outage = outage
        self._emit = emit
        self._tell = tell
        folder = outage.config.spool
        self._spool = Spool(folder, outage) if folder else None
        self._look_at = -math.inf
        self._needed = outage.shared and (outage.slot.wanted or self._spool is not None)
        forks.register(self)

    def after_fork(self) -> None:
        """Have nothing under way."""
        raise NotImplementedError

    def _answers(self) -> bool:
        """Note that the store answered; True if settlements wait for that."""
        if self.outage.breaker.succeeded():
            self._emit(events.store_up(self.outage.waiting, self.outage.lost))
        return self.outage.waiting > 0

    def _fails(self, error: StoreError) -> None:
        if self.outage.breaker.failed():
            self._emit(events.store_down(str(error)))

    def _due(self) -> bool:
        """Return whether this round asks the store."""
        breaker, renew_in = self.outage.breaker, self.outage.slot.renew_in()
        if not breaker.closed:
            return breaker.probes()
        return self.outage.waiting > 0 or (renew_in is not None and renew_in <= _AGAIN_S)

    def _pause_s(self) -> float | None:
        """Return the seconds until the next round; None if there is nothing to keep up."""
        if not self.outage.breaker.closed:
            return self.outage.breaker.probe_in() + 0.001
        if self.outage.waiting:
            # Jitter is no secret; it only keeps processes apart.
            return self.outage.config.open_s * random.uniform(0.5, 1.0)  # noqa: S311
        renew_in = self.outage.slot.renew_in()
        return _LOOK_S if renew_in is None and self._spool else renew_in

    def _on_disk(self) -> None:
        """Bring the spool up to date; it may wait for the disk."""
        if self._spool is None:
            return
        if self.outage.clock() >= self._look_at:
            self._look_at = self.outage.clock() + _LOOK_S
            self._spool.adopt()
        if self.outage.waiting:
            self._spool.write()
        else:
            self._spool.delivered()

    def _end(self) -> None:
        """Put on disk what could not be delivered; say in the log what is lost."""
        spooled = self._spool.write() if self._spool else 0
        if self._spool:
            if not self.outage.waiting:
                self._spool.delivered()
            self._spool.close()
        waiting, lost = self.outage.waiting - spooled, self.outage.lost
        if spooled:
            _log.warning("settlements left for the next process: %d", spooled)
        if waiting or lost:
            _log.critical("settlements not delivered: %d waiting, %d lost before", waiting, lost)


class Delivery(_Delivery):
    """Delivery for threads."""

    def __init__(self, outage: Outage, store: Store, emit: Emit, tell: Tell) -> None:
        super().__init__(outage, emit, tell)
        self._store = store
        self._upkeep = Upkeep(self._round, _NAME)

    def after_fork(self) -> None:
        """Have no thread yet."""
        self._upkeep.after_fork()

    def attend(self) -> None:
        """Be ready for an outage; called with each request, as late as that for forks."""
        if self._needed and not self._upkeep.running:
            self._start()

    def settle(self, grant: Grant, charges: Charges) -> None:
        """Settle now, or when the store is back."""
        if not self.outage.breaker.allows():
            self._keep(grant, charges)
            return
        try:
            reply = self._store.settle(grant, charges)
        except StoreError as error:
            self.failed(error)
            self._keep(grant, charges)
        else:
            self._tell(reply, grant)
            self.answered()

    def answered(self) -> None:
        """Note that the store answered; have delivered what waits for that."""
        if self._answers():
            if self.outage.shared:
                self._start()
            else:
                self._deliver(_IN_PASSING)

    def failed(self, error: StoreError) -> None:
        """Note that the store did not answer."""
        self._fails(error)
        if not self.outage.breaker.closed:
            self._start()

    def close(self, patience_s: float) -> None:
        """Deliver what waits, for as long as that may take; keep or report the rest."""
        until = time.monotonic() + patience_s
        self._upkeep.stop(patience_s)
        self._deliver(self.outage.waiting, until)
        while self.outage.waiting and time.monotonic() + _AGAIN_S < until:
            time.sleep(_AGAIN_S)
            self._deliver(self.outage.waiting, until)
        if self.outage.slot.number and self.outage.breaker.closed:
            with contextlib.suppress(StoreError):  # it ends by itself
                self._store.claim(*self.outage.slot.release)
        self._end()

    def _keep(self, grant: Grant, charges: Charges) -> None:
        self.outage.keep(grant, charges)
        self._start()

    def _start(self) -> None:
        if self.outage.shared:
            self._upkeep.start()
            self.outage.breaker.attended = self._upkeep.running

    def _round(self) -> float | None:
        if self._due():
            self._ask()
        self._on_disk()
        pause = self._pause_s()
        self.outage.breaker.attended = pause is not None
        return pause

    def _ask(self) -> None:
        begun_at = self.outage.slot.begin()
        try:
            number = self._store.claim(*self.outage.slot.claim)
        except StoreError as error:
            self._fails(error)
            return
        self.outage.slot.took(number, begun_at)
        self._answers()
        self._deliver(self.outage.waiting)

    def _deliver(self, count: int, until: float = math.inf) -> None:
        for kept in iter(self.outage.take, []):
            try:
                reply = self._store.settle(kept[0].grant, kept[0].charges)
            except StoreError as error:
                self._fails(error)
                self.outage.put_back(kept)
                return
            self._tell(reply, kept[0].grant)
            count -= 1
            if count <= 0 or time.monotonic() > until:
                return


class AsyncDelivery(_Delivery):
    """Delivery for an event loop; `start` runs something in a task of its own."""

    def __init__(
        self,
        outage: Outage,
        store: AsyncStore,
        emit: Emit,
        tell: Tell,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        super().__init__(outage, emit, tell)
        self._store = store
        self._start_task = start
        self._upkeep = AsyncUpkeep(self._round, _NAME)
        self._delivery: asyncio.Task[None] | None = None

    def after_fork(self) -> None:
        """Have no task yet."""
        self._upkeep.after_fork()
        self._delivery = None

    def attend(self) -> None:
        """Like `Delivery.attend`."""
        if self._needed and not self._upkeep.running:
            self._start()

    async def settle(self, grant: Grant, charges: Charges) -> None:
        """Like `Delivery.settle`; what is cancelled on its way waits as well."""
        if not self.outage.breaker.allows():
            self._keep(grant, charges)
            return
        try:
            reply = await self._store.settle(grant, charges)
        except StoreError as error:
            self.failed(error)
            self._keep(grant, charges)
        except asyncio.CancelledError:
            self.outage.keep(grant, charges)
            raise
        else:
            self._tell(reply, grant)
            self.answered()

    def answered(self) -> None:
        """Like `Delivery.answered`."""
        if self._answers():
            self.deliver()

    def failed(self, error: StoreError) -> None:
        """Like `Delivery.failed`."""
        self._fails(error)
        if not self.outage.breaker.closed:
            self._start()

    def deliver(self) -> asyncio.Task[None]:
        """Deliver what waits, in a task; one at a time does."""
        if self._delivery is None or self._delivery.done():
            self._delivery = self._start_task(self._deliver())
        return self._delivery

    async def close(self, patience_s: float) -> None:
        """Like `Delivery.close`."""
        await self._upkeep.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._deliver()
                while self.outage.waiting:
                    await asyncio.sleep(_AGAIN_S)
                    await self._deliver()
                if self.outage.slot.number and self.outage.breaker.closed:
                    with contextlib.suppress(StoreError):  # it ends by itself
                        await self._store.claim(*self.outage.slot.release)
        await asyncio.to_thread(self._end)

    def _keep(self, grant: Grant, charges: Charges) -> None:
        self.outage.keep(grant, charges)
        self._start()

    def _start(self) -> None:
        if self.outage.shared:
            self._upkeep.start()
            self.outage.breaker.attended = self._upkeep.running

    async def _round(self) -> float | None:
        if self._due():
            await self._ask()
        if self._spool is not None:
            await asyncio.to_thread(self._on_disk)
        pause = self._pause_s()
        self.outage.breaker.attended = pause is not None
        return pause

    async def _ask(self) -> None:
        begun_at = self.outage.slot.begin()
        try:
            number = await self._store.claim(*self.outage.slot.claim)
        except StoreError as error:
            self._fails(error)
            return
        self.outage.slot.took(number, begun_at)
        if self._answers():
            await asyncio.shield(self.deliver())

    async def _deliver(self) -> None:
        while lot := self.outage.take(_LOT):
            if not all(await asyncio.gather(*map(self._hand_over, lot))):
                return

    async def _hand_over(self, kept: Kept) -> bool:
        try:
            reply = await self._store.settle(kept.grant, kept.charges)
        except StoreError as error:
            self._fails(error)
        except asyncio.CancelledError:
            self.outage.put_back([kept])
            raise
        else:
            self._tell(reply, kept.grant)
            return True
        self.outage.put_back([kept])
        return False
