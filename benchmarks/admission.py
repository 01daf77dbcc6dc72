"""One admission, plan and reply included, against a script that does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from time import perf_counter

from benchmarks import _server
from benchmarks._deployment import (
    EIGHT_LIMITS,
    FOUR_LIMITS,
    configuration,
    model_call,
    principals,
)
from benchmarks.measure import (
    AT_ONCE,
    Goal,
    Result,
    Timings,
    all_at_once,
    alternate,
    at_least,
    at_most,
    one_by_one,
)
from llm_budget_mw import decision
from llm_budget_mw.assembly import build_async_store, build_engine, build_store
from llm_budget_mw.config import Config
from llm_budget_mw.types import Admission, Charges, Grant, Plan

_ROUNDS = 40
_COUNT = 100
_EACH = 4
_BARE = "return 1"
_KEY = f"{_server.PREFIX}:bare"
_USED = Charges(requests=1, tokens=50, cost_nano=200_000)


def run() -> Iterable[Result]:
    """Measure admissions on a thread, on an event loop, and many at once."""
    shapes = (
        ("4 limits, 1 offer", configuration(FOUR_LIMITS), at_most(1.5)),
        ("8 limits, 3 offers", configuration(EIGHT_LIMITS), at_most(1.8)),
    )
    for shape, config, goal in shapes:
        yield from _alone(f"admission, {shape}, sync", _on_a_thread(config), goal)
        alone, together = asyncio.run(_on_a_loop(config))
        yield from _alone(f"admission, {shape}, async", alone, goal)
        name = f"admission, {shape}, {AT_ONCE} at once"
        yield Result(f"{name}: bare EVALSHA", 1e6 / together.us("bare"), "/s")
        yield Result(f"{name}: admissions", 1e6 / together.us("admit"), "/s")
        gain = together.ratio("bare", "admit")
        yield Result(f"{name}: admissions a second / bare", gain, "x", at_least(3))


def _alone(name: str, timings: Timings, goal: Goal) -> Iterable[Result]:
    yield Result(f"{name}: bare EVALSHA", timings.us("bare"), "us")
    yield Result(f"{name}: admission", timings.us("admit"), "us")
    yield Result(f"{name}: admission / bare", timings.ratio("admit", "bare"), "x", goal)


class _Caller:
    """Plans calls of many users, and keeps what was granted until it is settled."""

    def __init__(self, config: Config) -> None:
        self._engine = build_engine(config)
        self._principals = principals()
        self._call = model_call()
        self.granted: list[Grant] = []

    def plan(self) -> Plan:
        return self._engine.plan(next(self._principals), self._call)

    def decide(self, plan: Plan, admission: Admission) -> None:
        decided = decision.decide(plan, admission)
        if not isinstance(decided, Grant):
            raise TypeError(f"an admission was refused: {decided.message}")
        self.granted.append(decided)


def _on_a_thread(config: Config) -> Timings:
    caller, store, plain = _Caller(config), build_store(config), _server.client()
    sha = str(plain.script_load(_BARE))

    async def bare() -> float:
        begin = perf_counter()
        for _ in range(_COUNT):
            plain.evalsha(sha, 1, _KEY)
        return (perf_counter() - begin) / _COUNT

    async def admit() -> float:
        begin = perf_counter()
        for _ in range(_COUNT):
            plan = caller.plan()
            caller.decide(plan, store.admit(plan))
        seconds = (perf_counter() - begin) / _COUNT
        while caller.granted:
            store.settle(caller.granted.pop(), _USED)
        return seconds

    timings = asyncio.run(alternate(_ROUNDS, {"bare": bare, "admit": admit}))
    store.close()
    plain.close()
    return timings


async def _on_a_loop(config: Config) -> tuple[Timings, Timings]:
    caller, store, plain = _Caller(config), build_async_store(config), _server.async_client()
    sha = str(await plain.script_load(_BARE))

    async def bare() -> None:
        await plain.evalsha(sha, 1, _KEY)

    async def admit() -> None:
        plan = caller.plan()
        caller.decide(plan, await store.admit(plan))

    async def settled(seconds: float) -> float:
        while caller.granted:
            await store.settle(caller.granted.pop(), _USED)
        return seconds

    async def admit_alone() -> float:
        return await settled(await one_by_one(admit, _COUNT))

    async def admit_together() -> float:
        return await settled(await all_at_once(admit, _EACH))

    alone = await alternate(
        _ROUNDS, {"bare": partial(one_by_one, bare, _COUNT), "admit": admit_alone}
    )
    together = await alternate(
        _ROUNDS, {"bare": partial(all_at_once, bare, _EACH), "admit": admit_together}
    )
    await store.close()
    await plain.aclose()
    return alone, together
