"""Tests of `llm_budget_mw.delivery`: guards on a real store that goes, fails and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_budget_mw import events
from llm_budget_mw.config import Config
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.shell import Held
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.types import Usage
from tests.deployment import ALICE, Recorder, call_of, configured, engine_of, origin_of
from tests.servers import Proxy, ValkeyServer, lose

PATIENCE_S = 20.0
TIER = {"budget": "$10/day", "local_share": 0.1, "max_tokens": 100}
OUTAGE = {"failures": 2, "open_s": 0.1, "max_open_s": 0.2, "processes": 2, "drain_s": 1.0}
ORIGIN = origin_of(call_of("x" * 84))
"""Holds 1,250,000 nano-dollars."""
DONE = Outcome(Ending.COMPLETE, Usage(40, 60))
COST = 40 * 2_500 + 60 * 10_000
"""Of such a call, in nano-dollars."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def proxy(valkey: ValkeyServer) -> Iterator[Proxy]:
    between = Proxy(valkey.port)
    yield between
    between.close()


class Process:
    """A guard of either kind, driven from outside; an event loop runs while it waits."""

    def __init__(self, config: Config, *, waits: bool) -> None:
        self.sink = Recorder()
        self._runner = asyncio.Runner() if waits else None
        self.guard: Guard | AsyncGuard
        if waits:
            store = connect_async(config.store)
            self.guard = AsyncGuard(engine_of(config), config, store, [self.sink])
        else:
            self.guard = Guard(engine_of(config), config, connect(config.store), [self.sink])
        self.closed = False

    def _do(self, result: Any) -> Any:
        return self._runner.run(result) if self._runner else result

    def admit(self) -> Held | None:
        """Ask for a call; None if it is refused."""
        return self.guard.hold(self._do(self.guard.decide(ORIGIN)), ORIGIN)

    def settle(self, held: Held) -> None:
        self._do(self.guard.settle(held, DONE))

    def call(self) -> bool:
        """Make a call, if it is admitted."""
        held = self.admit()
        if held:
            self.settle(held)
        return held is not None

    def used(self) -> int:
        """Return the nano-dollars that the store has booked or holds."""
        [status] = self._do(self.guard.limits(ALICE))
        used: int = status.used
        return used

    def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until something is so; nobody makes a call meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            if self._runner:
                self._runner.run(asyncio.sleep(0.01))
            else:
                time.sleep(0.01)

    def ready(self) -> None:
        """Make a call and wait for the slot."""
        assert self.call()
        self.until(lambda: self.guard.outage.slot.number > 0)

    def cut_off(self) -> int:
        """Make calls until the breaker is open; return how many were admitted."""
        admitted = 0
        while self.guard.outage.breaker.closed:
            admitted += self.call()
        return admitted

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._do(self.guard.close())
            if self._runner:
                self._runner.close()


Start = Callable[..., Process]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start processes of one deployment, unless told its prefix."""
    made: list[Process] = []
    prefix = f"t{secrets.token_hex(6)}"

    def begin(url: str, tier: dict[str, Any] | None = None, **outage: Any) -> Process:
        store = {"url": url, "prefix": prefix, "deadline_ms": 300}
        config = configured({**TIER, **(tier or {})}, store=store, outage={**OUTAGE, **outage})
        made.append(Process(config, waits=request.param))
        return made[-1]

    yield begin
    for process in made:
        process.close()


def away(proxy: Proxy) -> None:
    """Lose every answer and every connection from now on."""
    proxy.fault = lose
    proxy.hang_up()


def back(proxy: Proxy) -> None:
    """Answer as before."""
    proxy.fault = lambda reply, client: client.sendall(reply)
    proxy.silent = False


def test_a_quiet_process_delivers_when_the_store_is_back(start: Start, proxy: Proxy) -> None:
    """Nobody has to make a call for it; what was spent is booked once, and told once."""
    process = start(proxy.url)
    process.ready()
    held = process.admit()
    assert held
    away(proxy)
    made = 2 + process.cut_off()
    process.settle(held)
    for _ in range(3):
        made += process.call()
    back(proxy)

    process.until(lambda: events.STORE_UP in process.sink.names)
    process.until(lambda: not process.guard.outage.waiting)
    assert len(process.sink.named(events.SETTLED)) == made >= 5
    process.until(lambda: process.used() == made * COST)
    assert process.sink.names.count(events.STORE_UP) == 1


def test_a_process_without_a_slot_refuses_in_an_outage(start: Start, proxy: Proxy) -> None:
    """Two have one each; the third has to wait until one of them ends."""
    processes = [start(proxy.url) for _ in range(3)]
    for process in processes[:2]:
        process.ready()
    assert processes[2].call()
    processes[2].until(lambda: (processes[2].guard.outage.slot.renew_in() or 0) > 1)
    away(proxy)
    for process in processes:
        process.cut_off()

    assert [process.call() for process in processes] == [True, True, False]


def test_all_processes_together_spend_no_more_than_the_share(start: Start, proxy: Proxy) -> None:
    """A tenth of ten dollars is one; each of two slots admits half of it."""
    processes = [start(proxy.url, {"budget": "$0.10/day"}) for _ in range(4)]
    for process in processes:
        assert process.call()
    for process in processes[:2]:
        process.ready()
    away(proxy)

    admitted = 0
    for process in processes:
        while process.admit():
            admitted += 1
    # 10,000,000 nano-dollars, in two parts of four calls each.
    assert admitted == 8


def test_a_slot_is_given_back_at_the_end(start: Start, valkey: ValkeyServer) -> None:
    """The next process has it at once, long before its lease would end."""
    first = start(valkey.url, processes=1)
    first.ready()
    second = start(valkey.url, processes=1)
    assert second.call()
    second.until(lambda: (second.guard.outage.slot.renew_in() or 0) > 1)
    assert not second.guard.outage.slot.number
    second.close()
    first.close()

    start(valkey.url, processes=1).ready()


def test_a_store_that_comes_back_empty_is_taken_as_it_is(start: Start) -> None:
    """What waits is charged to the new account; slots are claimed anew."""
    with ValkeyServer() as own:
        process = start(own.url)
        process.ready()
        own.stop()
        made = process.cut_off() + process.call()
        own.start()

        process.until(lambda: not process.guard.outage.waiting)
        process.until(lambda: process.guard.outage.breaker.closed)
        assert process.used() == made * COST
        assert process.guard.outage.slot.number == 1
        process.close()


ERRORS = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOAUTH Authentication required.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
    "BUSY Redis is busy running a script.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda text: text.split()[0])
def test_a_store_that_answers_errors_is_away(start: Start, proxy: Proxy, error: str) -> None:
    """Calls go on by the outage rule, and are booked when it is itself again."""
    process = start(proxy.url)
    process.ready()

    def refuse(reply: bytes, client: socket.socket) -> None:
        client.sendall(f"-{error}\r\n".encode())

    proxy.fault = refuse
    process.cut_off()
    assert process.call()
    assert process.guard.outage.waiting
    back(proxy)
    proxy.hang_up()

    process.until(lambda: not process.guard.outage.waiting)
    assert process.guard.outage.lost == 0


def test_a_store_that_hangs_costs_a_request_its_deadline_once(start: Start, proxy: Proxy) -> None:
    """Until the breaker opens; then nobody waits for it, however long it hangs."""
    process = start(proxy.url, failures=1)
    process.ready()
    proxy.silent = True
    begun = time.monotonic()
    assert process.admit()
    first_s = time.monotonic() - begun
    begun = time.monotonic()
    for _ in range(200):
        process.admit()
    rest_s = time.monotonic() - begun
    proxy.hang_up()
    back(proxy)

    # redis-py reconnects once; the deadline is 0.3 s
    assert 0.25 <= first_s < 3
    assert rest_s < 2
    process.until(lambda: process.guard.outage.breaker.closed)


def test_the_end_is_not_put_off_for_long(
    start: Start, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that hangs gets its time, and no more; what is lost is said."""
    process = start(proxy.url, drain_s=0.5)
    process.ready()
    held = [process.admit() for _ in range(20)]
    proxy.silent = True
    for each in held:
        assert each
        process.settle(each)
    begun = time.monotonic()
    process.close()
    took_s = time.monotonic() - begun
    back(proxy)

    assert took_s < 0.5 + 3
    assert "settlements not delivered: 20 waiting, 0 lost before" in caplog.messages


async def test_an_event_loop_may_end_with_work_left(valkey: ValkeyServer) -> None:
    """A guard that lived on one loop goes on in another: slot, breaker and queue."""
    proxy = Proxy(valkey.port)
    config = configured(
        TIER,
        store={"url": proxy.url, "prefix": f"t{secrets.token_hex(6)}", "deadline_ms": 300},
        outage=OUTAGE,
    )
    guard = AsyncGuard(engine_of(config), config, connect_async(config.store))

    async def call() -> bool:
        held = guard.hold(await guard.decide(ORIGIN), ORIGIN)
        if held:
            await guard.settle(held, DONE)
        return held is not None

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 (nothing tells when it is so)
                await asyncio.sleep(0.01)

    async def first_loop() -> None:
        await call()
        await until(lambda: guard.outage.slot.number > 0)
        away(proxy)
        while guard.outage.breaker.closed:
            await call()

    await asyncio.to_thread(asyncio.run, first_loop())
    back(proxy)
    waiting = guard.outage.waiting
    await call()

    assert waiting
    await until(lambda: not guard.outage.waiting and guard.outage.breaker.closed)
    with contextlib.suppress(OSError):
        await guard.close()
    proxy.close()
