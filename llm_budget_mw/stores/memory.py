"""Counters in this process: exact under threads, gone with the process, not shared."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from llm_budget_mw import _limits
from llm_budget_mw.stores import _commands, _ledger
from llm_budget_mw.types import Admission, Charges, Counter, Grant, Plan, Subject, SubjectLimits

_SWEEP = 4
"""Accounts looked at for the end of their lifetime with each admission."""


def _wall_clock_ms() -> int:
    return int(time.time() * 1000)


class MemoryStore:
    """A store for one process; one lock around check and charge."""

    def __init__(self, clock: Callable[[], int] = _wall_clock_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: OrderedDict[Subject, _ledger.Account] = OrderedDict()

    def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        with self._lock:
            now = self._clock()
            self._sweep(now)
            return self._admit(plan, now)

    def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        with self._lock:
            now = self._clock()
            admitted_at = grant.admission.now_ms if grant.admission else 0
            starts = _commands.window_starts(grant, now)
            outcome = ""
            for entry in grant.plan.subjects:
                count = len(entry.limits.limits)
                account = self._account(entry.subject, now)
                outcome += _ledger.settle(
                    account, entry, grant.plan.id, charges, starts[:count], admitted_at, now
                )
                starts = starts[count:]
            return outcome

    def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        with self._lock:
            now = self._clock()
            accounts = [self._accounts.get(subject) for subject, _ in grant.plan.subjects]
            held = [
                account is not None and _ledger.renew(account, grant.plan, now)
                for account in accounts
            ]
            return all(held)

    def now_ms(self) -> int:
        """See `Store.now_ms`."""
        return self._clock()

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._accounts.clear()

    def _admit(self, plan: Plan, now: int) -> Admission:
        replayed: _ledger.Hold | None = None
        for subject, _ in plan.subjects:
            account = self._accounts.get(subject)
            if account:
                _ledger.collect(account, now)
                now = max(now, account.seen_ms)
                replayed = replayed or account.holds.get(plan.id)
        rows = [self._rolled(entry, now) for entry in plan.subjects]
        if replayed:
            held = replayed.state == "held"
            number, output = (replayed.offer, replayed.output) if held else (0, 0)
        else:
            number, output = _ledger.choose(plan, rows, now)
            if number:
                rows = [
                    _ledger.hold(
                        self._account(entry.subject, now), plan, entry, row, (number, output), now
                    )
                    for entry, row in zip(plan.subjects, rows, strict=True)
                ]
        flat = tuple(float(value) for row in rows for counter in row for value in counter)
        return Admission(now, number, output, flat)

    def _rolled(self, entry: SubjectLimits, now: int) -> list[Counter]:
        account = self._accounts.get(entry.subject)
        kept = account.counters if account else {}
        return [
            _ledger.roll(kept.get(limit.name), _limits.window_start(limit, now))
            for limit in entry.limits.limits
        ]

    def _account(self, subject: Subject, now: int) -> _ledger.Account:
        account = self._accounts.get(subject)
        if account is None:
            account = self._accounts[subject] = _ledger.Account(born_ms=now)
        self._accounts.move_to_end(subject)
        return account

    def _sweep(self, now: int) -> None:
        # Least recently used first: what has outlived its windows is dropped a few at a time.
        for subject in [key for key, _ in zip(self._accounts, range(_SWEEP), strict=False)]:
            if self._accounts[subject].lives_until_ms < now:
                del self._accounts[subject]
            else:
                self._accounts.move_to_end(subject)


class AsyncMemoryStore:
    """The same store for an event loop; nothing in it ever waits."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self._store = store or MemoryStore()

    async def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        return self._store.admit(plan)

    async def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        return self._store.settle(grant, charges)

    async def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        return self._store.renew(grant)

    def now_ms(self) -> int:
        """See `Store.now_ms`."""
        return self._store.now_ms()

    async def close(self) -> None:
        """See `Store.close`."""
        self._store.close()
