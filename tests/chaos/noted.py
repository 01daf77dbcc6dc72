"""Guards whose doings are written down: what they are about to ask of the store, and every event.

An intention is written before it is sent. So of a process that was killed it is known which
reservations were its own, and what its last settlement would have been.
"""

from __future__ import annotations

from typing import Any, cast

from llm_budget_mw import assembly
from llm_budget_mw.events import Event
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.stores.base import AsyncStore, Store
from llm_budget_mw.types import Admission, Charges, Grant, Plan
from tests.chaos.journal import Journal
from tests.chaos.settings import Settings


def open_guard(settings: Settings, journal: Journal) -> Guard:
    """Return a guard for threads."""
    config = assembly.configuration(settings.config)
    store = cast("Store", _NotedStore(assembly.build_store(config), journal))
    return Guard.open(config, store=store, sinks=[_Events(journal)])


def open_async_guard(settings: Settings, journal: Journal) -> AsyncGuard:
    """Return a guard for an event loop."""
    config = assembly.configuration(settings.config)
    store = cast("AsyncStore", _NotedAsyncStore(assembly.build_async_store(config), journal))
    return AsyncGuard.open(config, store=store, sinks=[_Events(journal)])


def note_end(journal: Journal, guard: Guard | AsyncGuard) -> None:
    """Note an end in good order, and what the guard could not deliver before it."""
    journal.add("closed", undelivered=guard.outage.waiting + guard.outage.lost)


class _Events:
    """A sink."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def emit(self, event: Event) -> None:
        self._journal.add("event", name=event.name, **event.attributes)


class _Noted:
    """What the store of either kind notes; the rest it leaves to the real one."""

    def __init__(self, store: Store | AsyncStore, journal: Journal) -> None:
        self._store: Any = store
        self._journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _admits(self, plan: Plan) -> None:
        subjects = [entry.subject.name for entry in plan.subjects]
        self._journal.add("admit", call=plan.id, subjects=subjects)

    def _settles(self, grant: Grant, charges: Charges) -> None:
        self._journal.add("settle", call=grant.plan.id, charges=charges)

    def _settled(self, grant: Grant, outcome: str) -> str:
        self._journal.add("settled", call=grant.plan.id, outcome=outcome)
        return outcome


class _NotedStore(_Noted):
    def admit(self, plan: Plan) -> Admission:
        self._admits(plan)
        return cast("Admission", self._store.admit(plan))

    def settle(self, grant: Grant, charges: Charges) -> str:
        self._settles(grant, charges)
        return self._settled(grant, self._store.settle(grant, charges))


class _NotedAsyncStore(_Noted):
    async def admit(self, plan: Plan) -> Admission:
        self._admits(plan)
        return cast("Admission", await self._store.admit(plan))

    async def settle(self, grant: Grant, charges: Charges) -> str:
        self._settles(grant, charges)
        return self._settled(grant, await self._store.settle(grant, charges))
