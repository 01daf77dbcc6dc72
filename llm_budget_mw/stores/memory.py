"""Counters in this process: exact under threads, gone with the process, not shared."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from llm_budget_mw import _limits
from llm_budget_mw.outputs import Counts, merged
from llm_budget_mw.stores import _commands, _ledger, _told
from llm_budget_mw.stores._additions import in_force, read_addition
from llm_budget_mw.stores._commands import Amended, Switches
from llm_budget_mw.stores._switches import barred
from llm_budget_mw.stores.base import AmendVerb, SwitchVerb
from llm_budget_mw.types import NOTHING, STOPPED, Admission, Charges, Grant, Plan, Subject

_MOST_SWITCHES = 1000
_SWEEP = 4
"""Accounts looked at for the end of their lifetime with each admission."""


def _wall_clock_ms() -> int:
    return int(time.time() * 1000)


class MemoryStore:
    """A store for one process; one lock around check and charge."""

    shared = False

    def __init__(self, clock: Callable[[], int] = _wall_clock_ms) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: OrderedDict[Subject, _ledger.Account] = OrderedDict()
        self._switches: dict[str, str] = {}
        self._outputs: dict[str, Counts] = {}
        self._slots: dict[int, tuple[str, int]] = {}
        """Number -> who has it, and until when."""

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
            outcome = told = ""
            for place, entry in enumerate(grant.plan.subjects):
                count = len(entry.limits.limits)
                account = self._account(entry.subject, now)
                due = NOTHING if _limits.spared(grant.offer, place) else charges
                digit = _ledger.settle(
                    account, entry, grant.plan.id, due, starts[:count], admitted_at, now
                )
                if digit in "13":
                    told += _told.tell(account, grant, place, due, now)
                outcome += digit
                starts = starts[count:]
            return outcome + told

    def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        with self._lock:
            now = self._clock()
            accounts = [self._accounts.get(subject) for subject, *_ in grant.plan.subjects]
            held = [
                account is not None and _ledger.renew(account, grant.plan, now)
                for account in accounts
            ]
            return all(held)

    def grow(self, grant: Grant, output: int) -> int:
        """See `Store.grow`."""
        with self._lock:
            now, key = self._clock(), grant.plan.id
            accounts = [self._accounts.get(subject) for subject, *_ in grant.plan.subjects]
            held = [each for each in accounts if each and _ledger.holds(each, key)]
            if len(held) < len(accounts):
                return grant.output
            steps = [
                _ledger.steps(account, grant, place, output, now)
                for place, account in enumerate(held)
            ]
            if None not in steps:
                for account, each in zip(held, steps, strict=True):
                    _ledger.grow(account, key, output, each or {})
            return max(grant.output, min(account.holds[key].output for account in held))

    def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """See `Store.learn`."""
        with self._lock:
            for name, counts in noted.items():
                self._outputs[name] = merged(self._outputs.get(name, {}), counts)
            return {name: self._outputs[name] for name in noted}

    def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """See `Store.amend`."""
        with self._lock:
            now = self._clock()
            known = subject in self._accounts
            account = self._account(subject, now)
            _ledger.forget_ended(account, now)
            changed = 0
            if verb == "add":
                changed = _ledger.add(account, read_addition(what), now)
            elif verb == "drop":
                changed = _ledger.drop(account, what)
            elif verb == "reset":
                changed = _ledger.reset(account, what.split())
            if not known and not changed:
                del self._accounts[subject]
            lines = [each.line for each in account.additions if in_force(each.until_ms, now)]
            return Amended(changed, tuple(lines))

    def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """See `Store.switch`."""
        with self._lock:
            now, changed = self._clock(), 0
            if verb == "stop":
                if len(self._switches) >= _MOST_SWITCHES and name not in self._switches:
                    return Switches(-1, {})
                changed = int(self._switches.get(name) != value)
                self._switches[name] = value
            elif verb == "resume":
                changed = int(self._switches.pop(name, None) is not None)
            self._switches = {
                name: value
                for name, value in self._switches.items()
                if in_force(int(value.partition(" ")[0]), now)
            }
            return Switches(changed, dict(self._switches))

    def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """See `Store.claim`."""
        with self._lock:
            now = self._clock()
            taken = {n: each for n, each in self._slots.items() if each[1] > now and n <= slots}
            mine = next((n for n, (owner, _) in taken.items() if owner == holder), 0)
            number = mine or next((n for n in range(1, slots + 1) if n not in taken), 0)
            if number and lease_ms:
                self._slots[number] = (holder, now + lease_ms)
                return number
            self._slots.pop(mine, None)
            return 0

    def now_ms(self) -> int:
        """See `Store.now_ms`."""
        return self._clock()

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._accounts.clear()
            self._switches.clear()

    def _admit(self, plan: Plan, now: int) -> Admission:
        replayed: _ledger.Hold | None = None
        for subject, *_ in plan.subjects:
            account = self._accounts.get(subject)
            if account:
                _ledger.collect(account, now)
                now = max(now, account.seen_ms)
                replayed = replayed or account.holds.get(plan.id)
        rows = [
            _ledger.row(self._accounts.get(entry.subject), entry, now) for entry in plan.subjects
        ]
        stopped, stop = barred(plan, self._switches, now)
        if replayed:
            held = replayed.state == "held"
            number, output = (replayed.offer, replayed.output) if held else (0, 0)
        elif stop:
            number, output = STOPPED, stop
        else:
            number, output = _ledger.choose(plan, rows, now, stopped)
            if number:
                rows = [
                    _ledger.hold(
                        self._account(entry.subject, now), plan, place, row, (number, output), now
                    )
                    for place, (entry, row) in enumerate(zip(plan.subjects, rows, strict=True))
                ]
        flat = tuple(float(value) for row in rows for counter in row.counters for value in counter)
        extra = tuple(float(more) for row in rows for more in row.extra)
        return Admission(now, number, output, flat, stopped, extra if any(extra) else ())

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
        self.shared = self._store.shared

    async def admit(self, plan: Plan) -> Admission:
        """See `Store.admit`."""
        return self._store.admit(plan)

    async def settle(self, grant: Grant, charges: Charges) -> str:
        """See `Store.settle`."""
        return self._store.settle(grant, charges)

    async def renew(self, grant: Grant) -> bool:
        """See `Store.renew`."""
        return self._store.renew(grant)

    async def grow(self, grant: Grant, output: int) -> int:
        """See `Store.grow`."""
        return self._store.grow(grant, output)

    async def learn(self, noted: Mapping[str, Counts]) -> dict[str, Counts]:
        """See `Store.learn`."""
        return self._store.learn(noted)

    async def amend(self, subject: Subject, verb: AmendVerb, what: str = "") -> Amended:
        """See `Store.amend`."""
        return self._store.amend(subject, verb, what)

    async def switch(self, verb: SwitchVerb, name: str = "", value: str = "") -> Switches:
        """See `Store.switch`."""
        return self._store.switch(verb, name, value)

    async def claim(self, holder: str, slots: int, lease_ms: int) -> int:
        """See `Store.claim`."""
        return self._store.claim(holder, slots, lease_ms)

    def now_ms(self) -> int:
        """See `Store.now_ms`."""
        return self._store.now_ms()

    async def close(self) -> None:
        """See `Store.close`."""
        self._store.close()
