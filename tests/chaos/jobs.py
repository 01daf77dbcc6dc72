"""Calls made in code, with `Guard.call` in threads and with `AsyncGuard.call` in tasks."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import httpx

from llm_budget_mw.calls import AsyncCall, Call
from llm_budget_mw.errors import BudgetExceeded
from llm_budget_mw.guard import AsyncGuard, Guard
from llm_budget_mw.types import Principal
from tests.chaos.asking import TIMEOUT_S, Ask, ask, someone, usage_in, words_in
from tests.chaos.journal import Journal
from tests.chaos.noted import note_end, open_async_guard, open_guard
from tests.chaos.provider import CALL_HEADER, SCRIPT_HEADER
from tests.chaos.settings import ROUTE, Settings

AT_ONCE = 4
"""Calls of one process at the same time."""
_REFUSED_S = 0.05
"""How long someone who was refused waits before the next call."""


class _Job:
    """One call: what is asked for whom, and what is read of the answer."""

    def __init__(self, rng: random.Random, settings: Settings, stops: Callable[[], bool]) -> None:
        self.asked: Ask = ask(rng)
        name, tier = someone(rng, settings.began_at)
        self.principal = Principal(name, tier=tier)
        self._url = settings.provider + ROUTE
        self._stops = stops
        self._usage: dict[str, int] | None = None
        self._words = 0

    def request(self, call: Call | AsyncCall) -> dict[str, Any]:
        """Return the request to the provider, for httpx."""
        headers = {
            CALL_HEADER: call.grant.plan.id,
            SCRIPT_HEADER: self.asked.script.written(),
        }
        return {"method": "POST", "url": self._url, "json": call.request, "headers": headers}

    def hears(self, line: str) -> bool:
        """Take one line of the answer; False if the rest of it is not wanted."""
        self._words += words_in(line)
        self._usage = usage_in(line) or self._usage
        leaves_after = self.asked.leaves_after
        left = leaves_after is not None and self._words > leaves_after
        return not (left or self._stops())

    def report(self, call: Call | AsyncCall) -> None:
        """Record the usage, if it was heard."""
        if self._usage is not None:
            call.record({"usage": self._usage})


def work_in_threads(settings: Settings, journal: Journal, name: str) -> None:
    """Make calls in threads until SIGTERM."""
    guard = open_guard(settings, journal)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threads = [
        threading.Thread(target=_calls, args=(settings, guard, stop, f"{name}-{number}"))
        for number in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard.close()
    note_end(journal, guard)


def _calls(settings: Settings, guard: Guard, stop: threading.Event, name: str) -> None:
    rng = random.Random(f"{settings.seed}-{name}")
    with httpx.Client(timeout=TIMEOUT_S) as client:
        while not stop.is_set():
            job = _Job(rng, settings, stop.is_set)
            try:
                with guard.call(job.principal, **job.asked.request) as call:
                    _hear(client, job, call)
                    job.report(call)
            except BudgetExceeded:
                stop.wait(_REFUSED_S)
            except httpx.HTTPError:
                pass  # the provider failed, or broke off


def _hear(client: httpx.Client, job: _Job, call: Call) -> None:
    with client.stream(**job.request(call)) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not job.hears(line):
                return


async def work_in_tasks(settings: Settings, journal: Journal, name: str) -> None:
    """Make calls in tasks until SIGTERM."""
    guard = open_async_guard(settings, journal)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.gather(
        *[_async_calls(settings, guard, stop, f"{name}-{number}") for number in range(AT_ONCE)]
    )
    await guard.close()
    note_end(journal, guard)


async def _async_calls(
    settings: Settings, guard: AsyncGuard, stop: asyncio.Event, name: str
) -> None:
    rng = random.Random(f"{settings.seed}-{name}")
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        while not stop.is_set():
            job = _Job(rng, settings, stop.is_set)
            try:
                async with asyncio.timeout(job.asked.patience_s):
                    async with guard.call(job.principal, **job.asked.request) as call:
                        await _async_hear(client, job, call)
                        job.report(call)
            except BudgetExceeded:
                await asyncio.sleep(_REFUSED_S)
            except (httpx.HTTPError, TimeoutError):
                pass  # the provider failed or broke off, or nobody wanted to wait any more


async def _async_hear(client: httpx.AsyncClient, job: _Job, call: AsyncCall) -> None:
    async with client.stream(**job.request(call)) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not job.hears(line):
                return
