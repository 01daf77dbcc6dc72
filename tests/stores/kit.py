"""What tests of stores say: limits, plans, and a store with its clock as one thing."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_budget_mw import _windows, decision
from llm_budget_mw.outputs import Counts
from llm_budget_mw.stores._commands import Amended, Switches
from llm_budget_mw.stores.base import AmendVerb, AsyncStore, Store, SwitchVerb
from llm_budget_mw.types import (
    Admission,
    Charges,
    Counter,
    Decision,
    Grant,
    Limit,
    LimitSet,
    Offer,
    Plan,
    Resource,
    Subject,
    SubjectLimits,
    Window,
)

START_MS = 1_767_225_600_000
"""2026-01-01 00:00 UTC: the start of a window of every length."""
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
MINUTE = Window("fixed", MINUTE_MS)
SLIDING = Window("sliding", MINUTE_MS)
DAY = Window("fixed", DAY_MS)
MONTH = Window("calendar", unit="month")
SLOT = Window("none")
NOTHING = Charges(0, 0, 0)
_process = secrets.token_hex(6)
_ids = itertools.count(1)


class ManualClock:
    """Milliseconds that pass when told to."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        self.now_ms += ms


class Driven:
    """An asynchronous store behind the face of a synchronous one, on one loop of its own."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self.shared = store.shared
        self._runner = asyncio.Runner()

    def admit(self, plan: Plan) -> Admission:
        return self._runner.run(self._store.admit(plan))

    def settle(self, grant: Grant, charges: Charges) -> str:
        return self._runner.run(self._store.settle(grant, charges))

    def renew(self, grant: Grant) -> bool:
        return self._runner.run(self._store.renew(grant))

    def grow(self, grant: Grant, output: int) -> int:
        return self._runner.run(self._store.grow(grant, output))

    def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        return self._runner.run(self._store.learn(noted))

    def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        return self._runner.run(self._store.amend(subject, verb, what))

    def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        return self._runner.run(self._store.switch(verb, name, value))

    def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        return self._runner.run(self._store.claim(holder, slots, lease_ms))

    def now_ms(self) -> int:
        return self._store.now_ms()

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()


def limit(
    amount: int, resource: Resource = "tokens", window: Window = MINUTE, name: str = ""
) -> Limit:
    unit = window.unit or window.length_ms
    return Limit(name or f"{resource}-{window.kind}-{unit}", resource, amount, window)


def limits(*each: Limit) -> LimitSet:
    return LimitSet(each)


def tokens(fixed: int, output: int = 0, *, least: int | None = None, ceiling: float = 1.0) -> Offer:
    """Return an offer that charges tokens, and as many nano-dollars."""
    least = output if least is None else least
    return Offer("model", output, least, ceiling, fixed, 1, fixed, 1)


UNFIT = Offer("none", -1, 0, 1.0, 0, 0, 0, 0)
"""An offer no store can grant: asks how things stand, without a trace."""


def plan(
    *entries: LimitSet | SubjectLimits,
    offers: Sequence[Offer] = (tokens(1),),
    lease_ms: int = 30_000,
    charge_on_expiry: bool = True,
) -> Plan:
    subjects = [
        entry
        if isinstance(entry, SubjectLimits)
        else SubjectLimits(Subject("acme", "alice"), entry)
        for entry in entries
    ]
    name = f"{_process}{next(_ids):012x}"
    return Plan(name, tuple(subjects), tuple(offers), lease_ms, charge_on_expiry)


def someone(name: str, each: LimitSet) -> SubjectLimits:
    return SubjectLimits(Subject("acme", name), each)


def granted(decided: Decision) -> Grant:
    assert isinstance(decided, Grant), decided
    return decided


def granted_by(asked: Plan, admission: Admission) -> Grant:
    return granted(decision.decide(asked, admission))


@dataclass
class Bench:
    """A store under test and the clock it goes by."""

    store: Store
    clock: ManualClock

    def admit(self, asked: Plan) -> Decision:
        return decision.decide(asked, self.store.admit(asked))

    def take(
        self, entry: LimitSet | SubjectLimits, fixed: int = 1, *, lease_ms: int = 30_000
    ) -> Grant:
        """Admit what must be admitted."""
        return granted(self.admit(plan(entry, offers=[tokens(fixed)], lease_ms=lease_ms)))

    def refuses(self, entry: LimitSet, fixed: int = 1) -> bool:
        """Tell whether a call of so many tokens would be refused; it is not made."""
        decided = self.admit(plan(entry, offers=[tokens(fixed)]))
        if isinstance(decided, Grant):
            self.store.settle(decided, NOTHING)
        return not decided.admitted

    def settle(self, grant: Grant, used: int) -> str:
        """Settle one request of so many tokens, each a nano-dollar."""
        return self.store.settle(grant, Charges(1, used, used))

    def counters(self, *entries: LimitSet | SubjectLimits) -> list[Counter]:
        admission = self.store.admit(plan(*entries, offers=[UNFIT]))
        numbers = iter(map(int, admission.counters))
        return list(map(Counter._make, zip(*[numbers] * 5, strict=True)))

    def used(self, *entries: LimitSet | SubjectLimits) -> list[int]:
        """Return what counts against each limit now."""
        each = [
            one
            for entry in entries
            for one in (entry.limits.limits if isinstance(entry, SubjectLimits) else entry.limits)
        ]
        now = self.clock()
        counters = self.counters(*entries)
        return [
            _windows.used(counter, one.window, now)
            for one, counter in zip(each, counters, strict=True)
        ]
