"""Calls through both guards, all the while something happens to the servers."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.types import Principal, Usage
from tests.deployment import Recorder, call_of, configured, origin_of

TIER = {
    "requests": "1000000/day",
    "tokens": "1000000000/day",
    "max_tokens": 100,
    "on_outage": {"requests": "open", "tokens": "open", "budget": "open", "concurrency": "open"},
}
OUTAGE = {"failures": 3, "open_s": 0.05, "max_open_s": 0.2}
CALL = call_of("x" * 84)
DONE = Outcome(Ending.COMPLETE, Usage(40, 60))
USED = 100
"""Tokens of each call."""
PAUSE_S = 0.002
"""Between two calls of a worker: leaves the processor to the servers."""


class Load:
    """Workers of both guards that call and settle until told to stop.

    A call that raises anything ends its worker, and the test: users see no error.
    """

    def __init__(
        self, url: str, who: list[Principal], *, workers: int = 2, deadline_ms: int = 1_000
    ) -> None:
        store = {
            "url": url,
            "deadline_ms": deadline_ms,
            "prefix": f"t{secrets.token_hex(6)}",
        }
        self.config = configured(TIER, store=store, outage=OUTAGE)
        self.calls: Counter[str] = Counter()
        """Settled calls of each principal."""
        self.unchecked = 0
        """Calls let through without the store."""
        self.failures: list[BaseException] = []
        self._who = who
        self._workers = workers
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sink = Recorder()
        self._guards: list[Guard | AsyncGuard] = []
        self._threads = [threading.Thread(target=self._guarded, args=(self._with_threads,))]
        self._threads += [threading.Thread(target=self._guarded, args=(self._with_tasks,))]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for(2 * self._workers)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.unchecked = len(self._sink.named("budget.unchecked"))
        if error is None and self.failures:
            raise self.failures[0]

    @property
    def errors(self) -> Counter[str]:
        """Why calls were not checked."""
        return Counter(event["error"] for event in self._sink.named("budget.unchecked"))

    def wait_for(self, more: int) -> None:
        """Wait until so many more calls are done."""
        target = self.calls.total() + more
        deadline = time.monotonic() + 30
        while self.calls.total() < target and not self.failures:
            assert time.monotonic() < deadline, "no calls get through"
            time.sleep(0.005)

    def wait_until_checked(self) -> None:
        """Wait until calls go through the store again, and what waited for it is delivered."""
        deadline = time.monotonic() + 30
        while True:
            before = len(self._sink.named("budget.unchecked"))
            self.wait_for(20 * self._workers)
            checked = len(self._sink.named("budget.unchecked")) == before
            if checked and not any(guard.outage.waiting for guard in self._guards):
                return
            assert time.monotonic() < deadline, "the store is not used again"

    def charged(self) -> dict[str, tuple[int, int]]:
        """Return the requests and tokens counted for each principal."""
        with_store = Guard.open(self.config, sinks=())
        found = {}
        for principal in self._who:
            used = {each.limit.resource: each.used for each in with_store.limits(principal)}
            found[principal.id] = (used["requests"], used["tokens"])
        with_store.close()
        return found

    def expected(self) -> dict[str, tuple[int, int]]:
        """Return what `charged` should be if nothing was lost."""
        return {
            principal.id: (self.calls[principal.id], self.calls[principal.id] * USED)
            for principal in self._who
        }

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (raised again by the test's own thread)
            self.failures.append(error)

    def _with_threads(self) -> None:
        guard = Guard.open(self.config, sinks=(self._sink,))
        self._guards.append(guard)
        workers = [
            threading.Thread(target=self._guarded, args=(lambda n=n: self._call(guard, n),))
            for n in range(self._workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        guard.close()

    def _call(self, guard: Guard, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            origin = origin_of(CALL, self._who[turn % len(self._who)])
            held = guard.hold(guard.decide(origin), origin)
            assert held is not None
            guard.settle(held, DONE)
            self._done(origin.principal)
            turn += 1
            time.sleep(PAUSE_S)

    def _with_tasks(self) -> None:
        asyncio.run(self._all_tasks())

    async def _all_tasks(self) -> None:
        guard = AsyncGuard.open(self.config, sinks=(self._sink,))
        self._guards.append(guard)
        await asyncio.gather(*(self._call_async(guard, n) for n in range(self._workers)))
        await guard.close()

    async def _call_async(self, guard: AsyncGuard, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            origin = origin_of(CALL, self._who[turn % len(self._who)])
            held = guard.hold(await guard.decide(origin), origin)
            assert held is not None
            await guard.settle(held, DONE)
            self._done(origin.principal)
            turn += 1
            await asyncio.sleep(PAUSE_S)

    def _done(self, principal: Principal) -> None:
        with self._lock:
            self.calls[principal.id] += 1
