"""Minutes in milliseconds: an event loop whose clock jumps to the next thing that happens."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from llm_budget_mw.clients.errand import Errand
from llm_budget_mw.clients.pace import AsyncPace
from llm_budget_mw.clients.recent import UpstreamLimit

_EPOCH_MS = 1_800_014_400_000
_ON_THE_WAY_S = 0.25
T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; raises `RuntimeError` where everything would wait for ever."""
        if timeout is None:
            raise RuntimeError("nothing is ever going to happen")
        self.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work())


def now_ms() -> int:
    """Return simulated time, for a store."""
    return _EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)


class Arrival(NamedTuple):
    """A call as its provider sees it."""

    at: float
    tokens: int
    principal: str


class Traffic(NamedTuple):
    """Calls that all come at once."""

    calls: int
    estimate: int = 0
    used: int = 0
    principals: int = 10


async def send(traffic: Traffic, paces: Sequence[AsyncPace], seed: int = 1) -> list[Arrival]:
    """Send calls through the paces in turn; return how they arrive at the provider."""
    chance = random.Random(seed)
    arrived: list[Arrival] = []

    async def one(number: int) -> None:
        principal = f"p{number % traffic.principals}"
        pace = paces[number % len(paces)]
        errand = Errand(principal, "m", traffic.estimate)
        place = await pace.enter(errand)
        await asyncio.sleep(chance.uniform(0, _ON_THE_WAY_S))
        arrived.append(Arrival(asyncio.get_running_loop().time(), traffic.used, principal))
        await asyncio.sleep(chance.uniform(0.5, 20))
        errand.used_tokens = traffic.used
        pace.settle(place)

    async with asyncio.TaskGroup() as group:
        for number in range(traffic.calls):
            group.create_task(one(number))
    for pace in paces:
        await pace.close()
    return sorted(arrived)


def most(arrived: Sequence[Arrival], per_s: float, weight: Callable[[Arrival], int]) -> int:
    """Return the most that arrived in any window of this length."""
    found = total = first = 0
    for arrival in arrived:
        total += weight(arrival)
        while arrived[first].at <= arrival.at - per_s:
            total -= weight(arrived[first])
            first += 1
        found = max(found, total)
    return found


def most_requests(arrived: Sequence[Arrival], limit: UpstreamLimit) -> int:
    """Return the most requests of any window."""
    return most(arrived, limit.per_s, lambda _: 1)


def most_tokens(arrived: Sequence[Arrival], limit: UpstreamLimit) -> int:
    """Return the most tokens of any window."""
    return most(arrived, limit.per_s, lambda arrival: arrival.tokens)


def part_used(arrived: Sequence[Arrival], amount: int, per_s: float, each: int = 1) -> float:
    """Return the part used of all that a full bucket would have given in that time."""
    seconds = arrived[-1].at - arrived[0].at
    return len(arrived) * each / (amount * (1 + seconds / per_s))
