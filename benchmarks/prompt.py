"""A long prompt: for how long nothing else can run on the event loop."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

from starlette.types import ASGIApp

from benchmarks import peers
from benchmarks._deployment import ask, configuration, log_to_nowhere, requests
from benchmarks.measure import Result, at_most
from llm_budget_mw.asgi import BudgetMiddleware

_ROUNDS = 15
_BYTES = 400_000
_TICK_S = 0.001
_QUIET_S = 0.1
"""How long the loop is watched without a request."""


def _words(letters: str, gap: str, size: int) -> str:
    """Return about `size` bytes of words that repeat too rarely for a tokenizer's cache."""
    source = random.Random(1)
    words: list[str] = []
    while size > 0:
        word = "".join(source.choices(letters, k=source.randint(2, 9))) + gap
        size -= len(word.encode())
        words.append(word)
    return "".join(words)


_TEXTS = {
    "Latin words": _words("etaoinshrdlu", " ", _BYTES),
    "Chinese characters": _words("的一是不了人我在有他这中大来上国", "\uff0c", _BYTES),
    "one letter": "a" * _BYTES,
}


def run() -> Iterable[Result]:
    """Measure the longest time between two ticks, with a request and without."""
    log_to_nowhere()
    yield from asyncio.run(_run())


async def _run() -> list[Result]:
    ours = BudgetMiddleware(peers.starlette_app(), config=configuration())
    results: list[Result] = []
    for name, text in _TEXTS.items():
        results += await _measure(f"prompt of {_BYTES // 1000} KB, {name}", ours, text)
    await ours.guard.close()
    return results


async def _measure(title: str, app: ASGIApp, text: str) -> list[Result]:
    source = requests(messages=[{"role": "user", "content": text}])
    await ask(app, next(source))
    quiet: list[float] = []
    busy: list[float] = []
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        quiet.append(await _longest_gap_ms(lambda: asyncio.sleep(_QUIET_S)))
        begin = perf_counter()
        busy.append(await _longest_gap_ms(lambda: ask(app, next(source))))
        seconds.append(perf_counter() - begin)
    without, with_it = statistics.median(quiet), statistics.median(busy)
    return [
        Result(f"{title}: the request", statistics.median(seconds) * 1000, "ms"),
        Result(f"{title}: longest gap between ticks, without", without, "ms"),
        Result(f"{title}: longest gap between ticks, with", with_it, "ms"),
        Result(f"{title}: event loop blocked for", with_it - without, "ms", at_most(5)),
    ]


async def _longest_gap_ms(work: Callable[[], Awaitable[object]]) -> float:
    """Return the longest time between two wake-ups of a task that sleeps one millisecond."""
    gaps = [0.0]

    async def tick() -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(_TICK_S)
            now = perf_counter()
            gaps.append(now - last)
            last = now

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work()
    await asyncio.sleep(2 * _TICK_S)  # the gap that the work ended in
    ticker.cancel()
    return max(gaps) * 1000
