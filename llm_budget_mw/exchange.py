"""One admitted request and its answer, for every edge: watched as it passes, settled once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm_budget_mw import _http, decision
from llm_budget_mw.current import Budget
from llm_budget_mw.dialects.protocol import RequestHead, Rewritten
from llm_budget_mw.ending import outcome_of
from llm_budget_mw.engine import Outcome
from llm_budget_mw.guard import AsyncGuard, Guard, Held
from llm_budget_mw.routes import Route
from llm_budget_mw.tap import Tap

_OFFLOAD_BYTES = 64 * 1024
"""An answer larger than this is read for its usage in a thread."""
_LENGTH = "content-length"


class _Exchange:
    """What the sync and the async exchange do alike; nothing here waits."""

    def __init__(self, route: Route, held: Held, budget: Budget) -> None:
        self.budget = budget
        self.tap = Tap(route.dialect, held.origin.call)
        self._route = route
        self._held = held
        self._limits = _http.limit_headers(decision.statuses(held.grant))

    @property
    def started(self) -> bool:
        """True once the application has begun to answer."""
        return self.tap.started

    def written(self, head: RequestHead) -> Rewritten:
        """Return the request with the grant in it."""
        grant, call = self._held.grant, self._held.origin.call
        return self._route.dialect.write_grant(head, call, grant.offer.model, grant.output)

    def start(self, status: int, headers: Sequence[_http.Header]) -> list[_http.Header]:
        """Note how the answer begins; return the headers to send."""
        if self.tap.started:  # WSGI lets an application begin anew until a byte has left
            self.tap = Tap(self._route.dialect, self._held.origin.call)
        known = {name.lower(): value for name, value in headers}
        self.tap.start(status, known)
        # A handler that passes on the provider's headers passes on the limits of its key.
        replaced = {name for name, _ in self._limits}
        if self.tap.rewrites:
            replaced.add(_LENGTH)
        kept = [item for item in headers if item[0].lower() not in replaced]
        return [*kept, *self._limits]

    def _outcome_of(self, error: BaseException | None, guard: Guard | AsyncGuard) -> Outcome:
        engine, model = guard.engine, self._held.grant.offer.model
        return outcome_of(
            self.budget,
            self.tap,
            error,
            lambda text: engine.count(text, model),
            custom=self._route.is_custom,
        )


class Exchange(_Exchange):
    """An exchange of a synchronous edge."""

    def __init__(self, guard: Guard, route: Route, held: Held) -> None:
        super().__init__(route, held, Budget(held, route.dialect.name, guard))
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
            self._guard.settle(self._held, self._outcome_of(error, self._guard))


class AsyncExchange(_Exchange):
    """An exchange of an edge on an event loop."""

    def __init__(self, guard: AsyncGuard, route: Route, held: Held) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(route, held, Budget(held, route.dialect.name, guard, loop))
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
            outcome = await asyncio.to_thread(self._outcome_of, error, self._guard)
        else:
            outcome = self._outcome_of(error, self._guard)
        await self._guard.settle(self._held, outcome)
