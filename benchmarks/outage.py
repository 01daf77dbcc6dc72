"""What an outage of the store costs a request, and how long it is felt after its end."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import Iterable
from time import perf_counter

from benchmarks._deployment import model_call
from benchmarks.measure import Result, at_most
from llm_budget_mw.assembly import build_async_store, build_engine, build_store
from llm_budget_mw.config import Config, load
from llm_budget_mw.engine import Ending, Outcome
from llm_budget_mw.events import Origin
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.shell import Held
from llm_budget_mw.types import Decision, Principal, Usage
from tests.servers import ValkeyServer

_DEADLINE_MS = 100
_CALLS = 5000
_RETURNS = 7
_AWAY_S = 3.0
_WAITING = 10_000
_PATIENCE_S = 60.0
_USED = Outcome(Ending.COMPLETE, Usage(15, 3))


class _Server(ValkeyServer):
    """A server that can be made to hang."""

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("the server was not started")
        self._process.send_signal(number)


def run() -> Iterable[Result]:
    """Hang, take what has waited, and come back."""
    with _Server() as server:
        yield from _on_a_thread(server)
        yield from asyncio.run(_on_a_loop(server))
        yield from _returns(server)


def _config(server: _Server) -> Config:
    # All of the share is ours, and large enough: what is measured is never refused.
    tier = {"requests": "9000000/minute", "tokens": "900000000/minute", "budget": "$100000/month"}
    return load(
        tiers={"default": {**tier, "concurrency": 100_000, "local_share": 0.9}},
        store={"url": server.url, "deadline_ms": _DEADLINE_MS},
        outage={"processes": 1, "queue": 2 * _WAITING},
        events={"log": False, "metrics": False, "span": False},
    )


def _origin(number: int) -> Origin:
    return Origin(Principal(f"user-{number % 200}"), model_call())


def _held(guard: Guard | AsyncGuard, decided: Decision, origin: Origin) -> Held:
    held = guard.hold(decided, origin)
    if held is None:
        raise RuntimeError("a call was refused")
    return held


class _Caller:
    """A guard for threads, ready for an outage."""

    def __init__(self, server: _Server) -> None:
        config = _config(server)
        self.guard = Guard(build_engine(config), config, build_store(config))
        self.guard.settle(self.admit(0), _USED)
        end = perf_counter() + _PATIENCE_S
        while not self.guard.outage.slot.number and perf_counter() < end:
            time.sleep(0.001)

    def admit(self, number: int) -> Held:
        origin = _origin(number)
        return _held(self.guard, self.guard.admit(self.guard.plan(origin), origin), origin)

    def call(self, number: int) -> None:
        self.guard.settle(self.admit(number), _USED)


def _on_a_thread(server: _Server) -> Iterable[Result]:
    caller = _Caller(server)
    outage, waits, calls = caller.guard.outage, list[float](), list[float]()
    server.freeze()
    while outage.breaker.closed:
        begin = perf_counter()
        caller.admit(len(waits))
        waits.append(perf_counter() - begin)
    for number in range(_CALLS):
        begin = perf_counter()
        held = caller.admit(number)
        calls.append(perf_counter() - begin)
        caller.guard.settle(held, _USED)
    for number in range(_WAITING - outage.waiting):
        caller.call(number)
    waiting = outage.waiting
    server.thaw()
    while outage.waiting == waiting:
        time.sleep(0.0005)
    begin, waiting = perf_counter(), outage.waiting
    while outage.waiting:
        time.sleep(0.0005)
    rate = waiting / (perf_counter() - begin)
    caller.guard.close()
    yield from _table("outage, sync", waits, calls, rate)


async def _on_a_loop(server: _Server) -> list[Result]:
    config = _config(server)
    guard = AsyncGuard(build_engine(config), config, build_async_store(config))
    outage, waits, calls = guard.outage, list[float](), list[float]()

    async def admit(number: int) -> Held:
        origin = _origin(number)
        return _held(guard, await guard.admit(guard.plan(origin), origin), origin)

    await guard.settle(await admit(0), _USED)
    while not outage.slot.number:  # noqa: ASYNC110 (nothing tells when it is so)
        await asyncio.sleep(0.001)
    server.freeze()
    while outage.breaker.closed:
        begin = perf_counter()
        await admit(len(waits))
        waits.append(perf_counter() - begin)
    for number in range(_CALLS):
        begin = perf_counter()
        held = await admit(number)
        calls.append(perf_counter() - begin)
        await guard.settle(held, _USED)
        await asyncio.sleep(0)
    for number in range(_WAITING - outage.waiting):
        await guard.settle(await admit(number), _USED)
    waiting = outage.waiting
    server.thaw()
    while outage.waiting == waiting:  # noqa: ASYNC110 (the same)
        await asyncio.sleep(0.0005)
    begin, waiting = perf_counter(), outage.waiting
    while outage.waiting:  # noqa: ASYNC110 (the same)
        await asyncio.sleep(0.0005)
    rate = waiting / (perf_counter() - begin)
    await guard.close()
    return list(_table("outage, async", waits, calls, rate))


def _table(title: str, waits: list[float], calls: list[float], rate: float) -> Iterable[Result]:
    calls.sort()
    yield Result(f"{title}: calls that wait for a store that hangs", len(waits))
    goal = at_most(1.2 * _DEADLINE_MS)
    yield Result(f"{title}: longest of these waits, deadline 100 ms", max(waits) * 1000, "ms", goal)
    name = f"{title}: an admission after that, plan included"
    yield Result(f"{name}, median", statistics.median(calls) * 1e6, "us", at_most(100))
    yield Result(f"{name}, 99 of 100", calls[int(len(calls) * 0.99)] * 1e6, "us")
    yield Result(f"{title}: what waited, delivered", rate, "/s")


def _returns(server: _Server) -> Iterable[Result]:
    """Stop and start the server, while a process makes calls all the time."""
    felt: list[float] = []
    for _ in range(_RETURNS):
        caller = _Caller(server)
        server.stop()
        end = perf_counter() + _AWAY_S
        while perf_counter() < end:
            caller.call(0)
            time.sleep(0.01)
        server.start()
        begin = perf_counter()
        while caller.admit(0).grant.admission is None:
            time.sleep(0.001)
        felt.append(perf_counter() - begin)
        caller.guard.close()
    title = f"outage of {_AWAY_S:.0f} s: from the store's return to its next decision"
    yield Result(f"{title}, median of {_RETURNS}", statistics.median(felt), "s")
    yield Result(f"{title}, longest", max(felt), "s", at_most(5))
