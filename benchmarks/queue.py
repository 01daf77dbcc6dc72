"""A thousand calls through the queue before a provider that takes 500 a minute."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from benchmarks.measure import Result, at_least, at_most
from llm_budget_mw.clients.pace import AsyncPace
from llm_budget_mw.clients.recent import UpstreamLimit
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from tests.clients import simulated

_CALLS = 1000
_LIMIT = UpstreamLimit("queue", requests=500)
_PROCESSES = 4
_WAIT_S = 300.0


def run() -> Iterable[Result]:
    """Send the calls in simulated minutes: of one process, and of several on one store."""
    yield from _measure("one process", 1, shared=False)
    yield from _measure(f"{_PROCESSES} processes", _PROCESSES, shared=True)


def _measure(title: str, processes: int, *, shared: bool) -> Iterable[Result]:
    async def work() -> list[simulated.Arrival]:
        store = AsyncMemoryStore(MemoryStore(simulated.now_ms)) if shared else None
        paces = [AsyncPace(_LIMIT, store=store, max_wait_s=_WAIT_S) for _ in range(processes)]
        return await simulated.send(simulated.Traffic(_CALLS), paces)

    begin = perf_counter()
    arrived = simulated.run(work)
    each_us = (perf_counter() - begin) / _CALLS * 1e6
    amount = _LIMIT.requests or 0
    most = simulated.most_requests(arrived, _LIMIT)
    used = 100 * simulated.part_used(arrived, amount, _LIMIT.per_s)
    title = f"queue, {_CALLS} calls, {title}"
    yield Result(f"{title}: most in any 60 s", most, "", at_most(amount))
    yield Result(f"{title}: part of the limit used", used, "%", at_least(95))
    yield Result(f"{title}: CPU for a call, simulation included", each_us, "us")
