"""One admitted request and its answer, for every edge: watched as it passes, settled once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from llm_budget_mw import _http, decision
from llm_budget_mw.current import Budget
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten
from llm_budget_mw.elastic import Elastic
from llm_budget_mw.ending import outcome_of
from llm_budget_mw.engine import Engine, Outcome
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.routes import Route
from llm_budget_mw.shell import Held
from llm_budget_mw.tap import FIRST_ERROR, Tap

_OFFLOAD_BYTES = 64 * 1024
"""An answer larger than this is read for its usage in a thread."""
_LENGTH = "content-length"
_CODING = "content-encoding"


class _Exchange:
    """What the sync and the async exchange do alike; nothing here waits."""

    def __init__(self, route: Route, held: Held, budget: Budget, engine: Engine) -> None:
        self.budget = budget
        self.tap = Tap(route.dialect, held.origin.call)
        self.elastic: Elastic | None = None
        """What a stream may pass on so far, where less is held than its bound."""
        self._route = route
        self._held = held
        self._engine = engine
        self._limits = _http.limit_headers(decision.statuses(held.grant))

    @property
    def started(self) -> bool:
        """True once the application has begun to answer."""
        return self.tap.started

    def written(self, head: RequestHead) -> Rewritten:
        """Return the request with the grant in it."""
        grant, call = self._held.grant, self._held.origin.call
        return self._route.dialect.write_grant(head, call, grant.offer.model, grant.max_tokens)

    def start(self, status: int, headers: Sequence[_http.Header]) -> list[_http.Header]:
        """Note how the answer begins; return the headers to send."""
        if self.tap.started:  # WSGI lets an application begin anew until a byte has left
            self.tap = Tap(self._route.dialect, self._held.origin.call)
        known = {name.lower(): value for name, value in headers}
        self.tap.start(status, known)
        self.elastic = self._stretched()
        # A handler that passes on the provider's headers passes on the limits of its key.
        replaced = {name for name, _ in self._limits}
        if self.tap.rewrites or self.elastic:
            replaced.add(_LENGTH)
        if self.elastic and self.tap.unfolds:
            replaced.add(_CODING)
        kept = [item for item in headers if item[0].lower() not in replaced]
        return [*kept, *self._limits]

    @property
    def stopped(self) -> bool:
        """True once the stream was ended because no more of it could be held."""
        return self.elastic is not None and self.elastic.stopped

    def _stretched(self) -> Elastic | None:
        grant = self._held.grant
        if grant.max_tokens == grant.output or self.tap.status >= FIRST_ERROR:
            return None
        return Elastic(grant, self.tap, self._count)

    def _count(self, text: str) -> int:
        return self._engine.count(text, self._held.grant)

    def _pass_on(self, elastic: Elastic) -> bytes:
        """Return what may be passed on now; all of it where calls inside pay for the answer."""
        if self.budget.calls:
            elastic.waive()
        return elastic.ready()

    def _grown(self) -> Held:
        """Return what is held by now."""
        if self.elastic is None:
            return self._held
        grant = self._held.grant._replace(output=self.elastic.output)
        return self._held._replace(grant=grant)

    def _outcome_of(self, error: BaseException | None) -> Outcome:
        custom = self._route.is_custom
        outcome = outcome_of(self.budget, self.tap, error, self._count, custom=custom)
        return outcome if self.elastic is None else self.elastic.outcome(outcome)


class Exchange(_Exchange):
    """An exchange of a synchronous edge."""

    def __init__(self, guard: Guard, route: Route, held: Held) -> None:
        super().__init__(route, held, Budget(held, route.dialect.name, guard), guard.engine)
        self._guard = guard
        self._settled = False
        guard.leases.keep(held.grant)

    def settle(self, error: BaseException | None = None) -> None:
        """Settle, once; `error` is what the application raised."""
        if self._settled:
            return
        self._settled = True
        self._guard.leases.drop(self._held.grant)
        if self.budget.reservation.retain():  # else by the call that took it
            self._guard.settle(self._grown(), self._outcome_of(error))

    def advance(self) -> bytes:
        """Return what an elastic stream may pass on; empty once all that was taken has passed.

        It holds more where that is needed, and ends the stream where it cannot.
        """
        elastic = cast("Elastic", self.elastic)
        while not elastic.stopped:
            passed = self._pass_on(elastic)
            asked = None if passed else elastic.ask()
            if asked is None:
                return passed
            elastic.answer(asked, self._guard.grow(self._grown().grant, asked))
            if elastic.exhausted:
                return elastic.stop()
        return b""


class AsyncExchange(_Exchange):
    """An exchange of an edge on an event loop."""

    def __init__(self, guard: AsyncGuard, route: Route, held: Held) -> None:
        loop = asyncio.get_running_loop()
        budget = Budget(held, route.dialect.name, guard, loop)
        super().__init__(route, held, budget, guard.engine)
        self._growth: asyncio.Task[None] | None = None
        self._guard = guard
        self._settling: asyncio.Task[None] | None = None
        self._renewal = guard.keep(held.grant)

    def settle(self, error: BaseException | None = None) -> asyncio.Task[None]:
        """Start to settle, once, in a task that nothing of the request can cancel."""
        self._renewal.cancel()
        if self._settling is None:
            self._settling = self._guard.start(self._settle(error))
        return self._settling

    async def _settle(self, error: BaseException | None) -> None:
        if not self.budget.reservation.retain():
            return  # by the call that took it
        if self.tap.size > _OFFLOAD_BYTES:
            outcome = await asyncio.to_thread(self._outcome_of, error)
        else:
            outcome = self._outcome_of(error)
        await self._guard.settle(self._grown(), outcome)

    async def advance(self) -> bytes:
        """Like `Exchange.advance`; ahead of need it grows in a task of its own."""
        elastic = cast("Elastic", self.elastic)
        while not elastic.stopped:
            passed = self._pass_on(elastic)
            if self._growth is None and (asked := elastic.ask()) is not None:
                self._growth = self._guard.start(self._grow(elastic, asked))
            if passed or self._growth is None or not elastic.waits:
                return passed
            await asyncio.shield(self._growth)
            if elastic.exhausted:
                return elastic.stop()
        return b""

    async def _grow(self, elastic: Elastic, asked: int) -> None:
        try:
            elastic.answer(asked, await self._guard.grow(self._grown().grant, asked))
        finally:
            self._growth = None
