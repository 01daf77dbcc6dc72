"""The guard around a call: engine, store, sinks and the outage rule, for every edge.

`Guard` and `AsyncGuard` share everything but the lines that wait. Neither ever raises
because of the store: a store that does not answer is a case of the outage rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Self, TypeVar

from llm_budget_mw import assembly, decision
from llm_budget_mw.calls import AsyncCall, Call, read_request
from llm_budget_mw.config import Config
from llm_budget_mw.delivery import AsyncDelivery, Delivery
from llm_budget_mw.dialects.protocol import Dialect
from llm_budget_mw.engine import Engine, Outcome
from llm_budget_mw.errors import StoreError
from llm_budget_mw.events import OnAlert, Origin, Sink
from llm_budget_mw.leases import Leases
from llm_budget_mw.outputs import Counts
from llm_budget_mw.shell import Held, Shell
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.tasks import Classify
from llm_budget_mw.types import (
    Decision,
    Grant,
    LimitStatus,
    Plan,
    Principal,
    Settlement,
)

T = TypeVar("T")


class Guard(Shell):
    """The guard for threads: WSGI, scripts, workers."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        store: Store,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        classify: Classify | None = None,
    ) -> None:
        super().__init__(engine, config, sinks, clock, classify, shared=store.shared)
        self.store = store
        self.leases = Leases(self.renew)
        self._delivery = Delivery(self.outage, store, self.emit, self._tell)

    @classmethod
    def open(
        cls,
        config: assembly.Source = None,
        *,
        store: Store | None = None,
        sinks: Sequence[Sink] | None = None,
        classify: Classify | None = None,
        on_alert: OnAlert | None = None,
    ) -> Self:
        """Open a guard on a configuration; `store` and `sinks` replace what that names.

        `classify` names the task of a call, in place of the configured claim and header;
        `on_alert` is called with each alert, where it happens, and must be quick.
        Raises `ConfigurationError` naming every wrong option.
        """
        settings = assembly.configuration(config)
        return cls(
            assembly.build_engine(settings),
            settings,
            assembly.build_store(settings) if store is None else store,
            assembly.choose_sinks(settings, sinks, on_alert),
            classify=classify,
        ).examined(store)

    def decide(self, origin: Origin) -> Decision:
        """Plan and admit a call, counting its input where that could change the answer.

        Raises `RequestError` for a call that cannot be bounded.
        """
        plan = self.plan(origin)
        exact = self.engine.worth_counting(plan, origin.call)
        if exact:
            plan = self.plan(origin, exact=True)
        decided = self.admit(plan, origin)
        if not exact and self.engine.might_fit(decided, origin.call):
            decided = self.admit(self.plan(origin, exact=True), origin)
        return decided

    def fit(self, origin: Origin, decided: Decision, dialect: Dialect) -> tuple[Origin, Decision]:
        """Admit a call that was refused with its conversation shortened, where that helps."""
        shorter = self.engine.shorten(
            origin.principal, origin.call, origin.feature, decided, dialect
        )
        if shorter is None:
            return origin, decided
        origin = origin._replace(call=shorter[0])
        return origin, self.admit(self._sized(shorter[1], origin), origin)

    def admit(self, plan: Plan, origin: Origin) -> Decision:
        """Ask the store, or the outage rule where it does not answer."""
        self._share_outputs(origin)
        self._delivery.attend()
        if not self.outage.breaker.allows():
            return self._without_store(plan, origin, None)
        try:
            admission = self.store.admit(plan)
        except StoreError as error:
            self._delivery.failed(error)
            return self._without_store(plan, origin, error)
        self._delivery.answered()
        return decision.decide(plan, admission)

    def call(
        self,
        principal: Principal,
        *,
        dialect: str = "openai_chat",
        feature: str | None = None,
        task: str | None = None,
        **request: Any,
    ) -> Call:
        """Return a guarded call, to be entered with `with`.

        `request` is what the provider's SDK would be given: `model`, `messages`, ...; a `task`
        for which the tier has offers chooses the model instead. Raises
        `RequestError` where it cannot be read; entering raises `BudgetExceeded`.
        """
        asked = self.with_task(principal, read_request(dialect, request), task)
        origin = Origin(principal, asked, feature=feature)
        return Call(self, origin, dialect)

    def limits(self, principal: Principal) -> tuple[LimitStatus, ...]:
        """Return every limit of a principal as it stands now; nothing is reserved.

        Raises `StoreError` if the store does not answer.
        """
        plan = self.engine.glance(principal)
        return decision.standing(plan, self.store.admit(plan)) if plan.subjects else ()

    def settle(self, held: Held, outcome: Outcome) -> Settlement:
        """Replace a reservation by what was used, now or when the store is back."""
        settlement = self._settlement(held, outcome)
        if held.grant.plan.subjects:
            self._delivery.settle(held.grant, settlement.charges)
        self._share_outputs(held.origin)
        self._report(held, settlement)
        return settlement

    def grow(self, grant: Grant, output: int) -> int:
        """Hold so much output for a running call, in all; return what is held then.

        The outage rule decides where the store does not answer, or has not admitted the call.
        """
        if not grant.plan.subjects:
            return output
        if grant.admission is None or not self.outage.breaker.allows():
            return self.outage.grow(grant, output)
        try:
            held = self.store.grow(grant, output)
        except StoreError as error:
            self._delivery.failed(error)
            return self.outage.grow(grant, output)
        self._delivery.answered()
        return held

    def renew(self, grant: Grant) -> bool:
        """Prolong a running call's lease; False if the store does not hold it (any more)."""
        if not grant.plan.subjects or not self.outage.breaker.allows():
            return self.outage.renew(grant)
        try:
            renewed = self.store.renew(grant)
        except StoreError as error:
            self._delivery.failed(error)
            return False
        self._delivery.answered()
        return renewed

    def close(self) -> None:
        """Deliver what waits, within `outage.drain_s`, and let go of the store.

        What it does not take is spooled, or lost with this process and logged.
        """
        self.leases.close()
        self._delivery.close(self.config.outage.drain_s)
        self._close_sinks()
        self.store.close()

    def _share_outputs(self, origin: Origin) -> None:
        """Learn how long answers are, in a thread of its own, if it is time to."""
        noted = self.outputs.due() if origin.elastic else None
        if noted:
            name = "llm-budget-outputs"
            threading.Thread(target=self._learn, args=(noted,), name=name, daemon=True).start()

    def _learn(self, noted: Mapping[str, Counts]) -> None:
        with contextlib.suppress(StoreError):
            self.outputs.learn(self.store.learn(noted))


class Renewal:
    """Keeps the lease of one running call, until it is cancelled."""

    def __init__(self, guard: AsyncGuard, grant: Grant) -> None:
        self._guard = guard
        self._grant = grant
        self._timer = self._start()

    def cancel(self) -> None:
        """Stop: the call has ended."""
        self._timer.cancel()

    def _start(self) -> asyncio.TimerHandle:
        half_s = self._grant.plan.lease_ms / 2000
        return asyncio.get_running_loop().call_later(half_s, self._renew)

    def _renew(self) -> None:
        self._guard.start(self._guard.renew(self._grant))
        self._timer = self._start()


class AsyncGuard(Shell):
    """The guard for an event loop."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        store: AsyncStore,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        classify: Classify | None = None,
    ) -> None:
        super().__init__(engine, config, sinks, clock, classify, shared=store.shared)
        self.store = store
        self._running: set[asyncio.Task[Any]] = set()
        self._delivery = AsyncDelivery(self.outage, store, self.emit, self._tell, self.start)

    @classmethod
    def open(
        cls,
        config: assembly.Source = None,
        *,
        store: AsyncStore | None = None,
        sinks: Sequence[Sink] | None = None,
        classify: Classify | None = None,
        on_alert: OnAlert | None = None,
    ) -> Self:
        """Open a guard on a configuration; `store` and `sinks` replace what that names.

        `classify` names the task of a call, in place of the configured claim and header;
        `on_alert` is called with each alert, where it happens, and must be quick.
        Raises `ConfigurationError` naming every wrong option.
        """
        settings = assembly.configuration(config)
        return cls(
            assembly.build_engine(settings),
            settings,
            assembly.build_async_store(settings) if store is None else store,
            assembly.choose_sinks(settings, sinks, on_alert),
            classify=classify,
        ).examined(store)

    async def decide(self, origin: Origin) -> Decision:
        """Like `Guard.decide`; long prompts are counted in a thread."""
        plan = self.plan(origin)
        exact = self.engine.worth_counting(plan, origin.call)
        if exact:
            plan = await self._exact_plan(origin)
        decided = await self.admit(plan, origin)
        if not exact and self.engine.might_fit(decided, origin.call):
            decided = await self.admit(await self._exact_plan(origin), origin)
        return decided

    async def fit(
        self, origin: Origin, decided: Decision, dialect: Dialect
    ) -> tuple[Origin, Decision]:
        """Like `Guard.fit`; a long conversation is shortened in a thread."""
        shorten, call = self.engine.shorten, origin.call
        if not isinstance(decided, Grant) and self.engine.estimator.offload(call.prompt):
            shorter = await asyncio.to_thread(
                shorten, origin.principal, call, origin.feature, decided, dialect
            )
        else:
            shorter = shorten(origin.principal, call, origin.feature, decided, dialect)
        if shorter is None:
            return origin, decided
        origin = origin._replace(call=shorter[0])
        return origin, await self.admit(self._sized(shorter[1], origin), origin)

    async def admit(self, plan: Plan, origin: Origin) -> Decision:
        """Like `Guard.admit`; an admission that is cancelled is given back."""
        self._share_outputs(origin)
        self._delivery.attend()
        if not self.outage.breaker.allows():
            return self._without_store(plan, origin, None)
        try:
            admission = await self.store.admit(plan)
        except StoreError as error:
            self._delivery.failed(error)
            return self._without_store(plan, origin, error)
        except asyncio.CancelledError:
            self.outage.abandon(plan)
            self._delivery.deliver()
            raise
        self._delivery.answered()
        return decision.decide(plan, admission)

    def call(
        self,
        principal: Principal,
        *,
        dialect: str = "openai_chat",
        feature: str | None = None,
        task: str | None = None,
        **request: Any,
    ) -> AsyncCall:
        """Return a guarded call, to be entered with `async with`; see `Guard.call`."""
        asked = self.with_task(principal, read_request(dialect, request), task)
        origin = Origin(principal, asked, feature=feature)
        return AsyncCall(self, origin, dialect)

    async def limits(self, principal: Principal) -> tuple[LimitStatus, ...]:
        """Like `Guard.limits`."""
        plan = self.engine.glance(principal)
        return decision.standing(plan, await self.store.admit(plan)) if plan.subjects else ()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something in a task of its own, which the end of a request cannot cancel."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def settle(self, held: Held, outcome: Outcome) -> Settlement:
        """Like `Guard.settle`; a long prompt is counted in a thread."""
        if self.engine.counts_long(outcome, held.origin.call):
            settlement = await asyncio.to_thread(self._settlement, held, outcome)
        else:
            settlement = self._settlement(held, outcome)
        if held.grant.plan.subjects:
            await self._delivery.settle(held.grant, settlement.charges)
        self._share_outputs(held.origin)
        self._report(held, settlement)
        return settlement

    async def grow(self, grant: Grant, output: int) -> int:
        """Like `Guard.grow`."""
        if not grant.plan.subjects:
            return output
        if grant.admission is None or not self.outage.breaker.allows():
            return self.outage.grow(grant, output)
        try:
            held = await self.store.grow(grant, output)
        except StoreError as error:
            self._delivery.failed(error)
            return self.outage.grow(grant, output)
        self._delivery.answered()
        return held

    async def renew(self, grant: Grant) -> bool:
        """Like `Guard.renew`."""
        if not grant.plan.subjects or not self.outage.breaker.allows():
            return self.outage.renew(grant)
        try:
            renewed = await self.store.renew(grant)
        except StoreError as error:
            self._delivery.failed(error)
            return False
        self._delivery.answered()
        return renewed

    def keep(self, grant: Grant) -> Renewal:
        """Renew a running call's lease at half of it, until that is cancelled."""
        return Renewal(self, grant)

    async def close(self) -> None:
        """Like `Guard.close`; calls that are being settled are waited for."""
        until = time.monotonic() + self.config.outage.drain_s
        # One that ends may start another: a settlement, the delivery of what waits.
        while self._running and time.monotonic() < until:
            await asyncio.wait(self._running, timeout=until - time.monotonic())
        for task in self._running:
            task.cancel()  # what it was settling waits then
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._delivery.close(max(0.0, until - time.monotonic()))
        if any(hasattr(sink, "close") for sink in self._sinks):
            await asyncio.to_thread(self._close_sinks)
        await self.store.close()

    async def _exact_plan(self, origin: Origin) -> Plan:
        if self.engine.estimator.offload(origin.call.prompt):
            return await asyncio.to_thread(self.plan, origin, exact=True)
        return self.plan(origin, exact=True)

    def _share_outputs(self, origin: Origin) -> None:
        """Learn how long answers are, in a task of its own, if it is time to."""
        noted = self.outputs.due() if origin.elastic else None
        if noted:
            self.start(self._learn(noted))

    async def _learn(self, noted: Mapping[str, Counts]) -> None:
        with contextlib.suppress(StoreError):
            self.outputs.learn(await self.store.learn(noted))
