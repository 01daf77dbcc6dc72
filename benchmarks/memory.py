"""What a principal costs the server, who has made a call and has none in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from benchmarks import _server
from benchmarks._deployment import configuration, model_call
from benchmarks.measure import AT_ONCE, Result, at_most
from llm_budget_mw import decision
from llm_budget_mw.assembly import build_async_store, build_engine
from llm_budget_mw.engine import Engine
from llm_budget_mw.stores.base import AsyncStore
from llm_budget_mw.types import Charges, Grant, Principal

_PRINCIPALS = 10_000
_KIB = 1024


def run() -> Iterable[Result]:
    """Measure the server's memory before and after a settled call of many principals."""
    used = asyncio.run(_run())
    name = f"memory, {_PRINCIPALS} principals with 4 limits: each"
    yield Result(name, used / _PRINCIPALS, "bytes", at_most(_KIB))
    _server.clean()


async def _run() -> int:
    config = configuration()
    engine, store = build_engine(config), build_async_store(config)
    await _calls(engine, store, "warm", AT_ONCE)  # scripts and connections are not theirs
    before = _used_memory()
    await _calls(engine, store, "user", _PRINCIPALS)
    after = _used_memory()
    await store.close()
    return after - before


async def _calls(engine: Engine, store: AsyncStore, name: str, count: int) -> None:
    """Make one call for each of `count` principals, and settle it."""
    principals = (Principal(f"{name}-{number}") for number in range(count))
    call = model_call()

    async def work() -> None:
        for principal in principals:
            plan = engine.plan(principal, call)
            granted = decision.decide(plan, await store.admit(plan))
            if not isinstance(granted, Grant):
                raise TypeError(f"an admission was refused: {granted.message}")
            await store.settle(granted, Charges(requests=1, tokens=50, cost_nano=200_000))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def _used_memory() -> int:
    return int(_server.facts("memory")["used_memory"])
