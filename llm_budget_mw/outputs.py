"""How long answers are, by route and model: a histogram that processes share, and its quantile.

Its buckets are logarithmic, four for each doubling: what is expected is at most a fifth above
what was seen. Old answers weigh less, as all counts are halved when there are many.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from llm_budget_mw.types import Offer, Plan

Counts = dict[int, int]
"""Answers in each bucket."""

MOST_ANSWERS = 1000
"""Beyond so many answers all counts are halved."""
KEEP_MS = 30 * 86_400_000
"""How long counts stay that nobody adds to."""
_FINENESS = 4
_LEAST_ANSWERS = 20
"""Of fewer answers nobody knows how long the next one is."""
_QUANTILE = 0.9
_MOST_NAMES = 256
_LONGEST_NAME = 200
_EVERY_S = 5.0


def bucket_of(tokens: int) -> int:
    """Return the bucket of an answer of so many tokens."""
    return math.ceil(_FINENESS * math.log2(tokens)) if tokens > 1 else 0


def most_of(bucket: int) -> int:
    """Return the most tokens an answer in a bucket may have."""
    return math.floor(2 ** (bucket / _FINENESS))


def quantile(counts: Mapping[int, int], part: float) -> int | None:
    """Return how many tokens this part of all answers does not exceed; None if they are few."""
    answers = sum(counts.values())
    if answers < _LEAST_ANSWERS:
        return None
    buckets = sorted(counts)
    seen = itertools.accumulate(counts[bucket] for bucket in buckets)
    enough = [
        bucket for bucket, so_far in zip(buckets, seen, strict=True) if so_far >= part * answers
    ]
    return most_of(enough[0])


def merged(counts: Mapping[int, int], more: Mapping[int, int]) -> Counts:
    """Return both together, halved if they are many; `stores/lua/learn.lua` does the same."""
    both = {key: counts.get(key, 0) + more.get(key, 0) for key in counts.keys() | more.keys()}
    if sum(both.values()) <= MOST_ANSWERS:
        return both
    return {key: count // 2 for key, count in both.items() if count > 1}


def name_of(route: str, model: str) -> str:
    """Return the name of a route's answers by one model, short and without any separator."""
    name = f"{quote(route, safe='')}/{quote(model, safe='')}"
    # No escaped name has an equals sign.
    return name if len(name) <= _LONGEST_NAME else f"={hashlib.sha256(name.encode()).hexdigest()}"


class Outputs:
    """What one process knows of the answers of elastic routes; safe for threads.

    It is learned together with all other processes in batches, which somebody else takes to
    the store and back. A batch that is lost is lost: these are statistics.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._expected: dict[str, int | None] = {}
        """Tokens by name; None if nobody knows."""
        self._noted: dict[str, Counts] = {}
        """What is to be learned by others; empty where this process only wants to know."""
        self._next_at = 0.0

    def sized(self, plan: Plan, route: str) -> Plan:
        """Return a plan that holds what is expected; its bounds stay what they were."""
        return plan._replace(offers=tuple([self._sized(offer, route) for offer in plan.offers]))

    def note(self, route: str, model: str, tokens: int) -> None:
        """Note how long an answer was."""
        name, bucket = name_of(route, model), bucket_of(tokens)
        with self._lock:
            if self._knows(name):
                counts = self._noted.setdefault(name, {})
                counts[bucket] = counts.get(bucket, 0) + 1

    def due(self) -> Mapping[str, Counts] | None:
        """Return what is to be taken to the store now, if anything is; it is not given twice."""
        if not self._noted or self._clock() < self._next_at:
            return None
        with self._lock:
            noted, self._noted = self._noted, {}
            self._next_at = self._clock() + _EVERY_S
        return noted or None

    def learn(self, counts: Mapping[str, Mapping[int, int]]) -> None:
        """Take in what came back."""
        expected = {name: quantile(each, _QUANTILE) for name, each in counts.items()}
        with self._lock:
            self._expected |= expected

    def _sized(self, offer: Offer, route: str) -> Offer:
        expected = self._expect(name_of(route, offer.model))
        most = offer.max_output
        if expected is None or offer.bound:
            return offer
        hold = min(most, max(expected, offer.min_output))
        return offer if hold == most else offer._replace(max_output=hold, bound=most)

    def _expect(self, name: str) -> int | None:
        if name not in self._expected:
            with self._lock:
                if self._knows(name):
                    self._noted.setdefault(name, {})
        return self._expected.get(name)

    def _knows(self, name: str) -> bool:
        """Return whether there is room for a name, which may come from outside."""
        if name not in self._expected and len(self._expected) < _MOST_NAMES:
            self._expected[name] = None
        return name in self._expected
