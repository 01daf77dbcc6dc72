"""Times that may be compared: every variant in every round, the order reversed in every other.

A shared machine is faster in one second than in the next. What is compared runs next to each
other, each round gives one ratio, and the median of the ratios is the result.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Literal, NamedTuple

AT_ONCE = 64
"""Tasks that wait at the same time, where a benchmark has many."""


class Goal(NamedTuple):
    """What a value has to be."""

    relation: Literal["at most", "at least"]
    bound: float

    def met_by(self, value: float) -> bool:
        """Return whether a value is good enough."""
        return value <= self.bound if self.relation == "at most" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def at_most(bound: float) -> Goal:
    """Return the goal that a value is no larger."""
    return Goal("at most", bound)


def at_least(bound: float) -> Goal:
    """Return the goal that a value is no smaller."""
    return Goal("at least", bound)


class Result(NamedTuple):
    """One line of the report; a value that is text says what was measured on, or why not."""

    name: str
    value: float | str
    unit: str = ""
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is none, or nothing was measured."""
        if self.goal is None or isinstance(self.value, str):
            return None
        return self.goal.met_by(self.value)


Variant = Callable[[], Awaitable[float]]
"""Runs a few operations and returns the seconds one of them took."""


class Timings:
    """The seconds of each variant in each round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = seconds

    def us(self, name: str) -> float:
        """Return the median of a variant, in microseconds."""
        return statistics.median(self._seconds[name]) * 1e6

    def ratio(self, name: str, base: str) -> float:
        """Return how many times as long as `base` a variant took: the median over the rounds."""
        pairs = zip(self._seconds[name], self._seconds[base], strict=True)
        return statistics.median(mine / other for mine, other in pairs)

    def difference_us(self, name: str, base: str) -> float:
        """Return how many microseconds longer it took: the median over the rounds."""
        pairs = zip(self._seconds[name], self._seconds[base], strict=True)
        return statistics.median(mine - other for mine, other in pairs) * 1e6


async def alternate(rounds: int, variants: Mapping[str, Variant]) -> Timings:
    """Run all variants in turn, `rounds` times after one that only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        gc.collect()  # or a variant pays for what the round before it left
        order = list(variants.items())
        for name, run in order if number % 2 else reversed(order):
            each = await run()
            if number:
                seconds[name].append(each)
    return Timings(seconds)


async def one_by_one(operation: Callable[[], Awaitable[object]], count: int) -> float:
    """Return the seconds of one of `count` operations, each started when the last is done."""
    begin = perf_counter()
    for _ in range(count):
        await operation()
    return (perf_counter() - begin) / count


async def all_at_once(operation: Callable[[], Awaitable[object]], each: int) -> float:
    """Return the seconds per operation of `AT_ONCE` tasks that do `each` of them in turn."""

    async def work() -> None:
        for _ in range(each):
            await operation()

    begin = perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return (perf_counter() - begin) / (AT_ONCE * each)
