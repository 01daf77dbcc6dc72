"""Admissions of other shapes: more limits, subjects and offers; and what can only be refused."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks import _server
from benchmarks._deployment import FOUR_LIMITS, USERS, configuration, model_call
from benchmarks._toll import Toll
from benchmarks.measure import Goal, Result, Timings, Variant, alternate, at_least, at_most
from llm_budget_mw import decision
from llm_budget_mw.assembly import build_engine, build_store
from llm_budget_mw.config import Config
from llm_budget_mw.engine import Engine
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect
from llm_budget_mw.types import Charges, Grant, Principal, RefusalReason

_ROUNDS = 24
_COUNT = 100
_REFUSED = 2000
_REFUSED_ROUNDS = 12
_REFUSED_S = 3.0
_USED = Charges(requests=1, tokens=50, cost_nano=200_000)
_BARE = "bare EVALSHA"
_LIMITS = (
    ("budget", "$100000/month"),
    ("requests", "5000000/minute"),
    ("tokens", "900000000/minute"),
    ("concurrency", 10_000),
    ("requests", "100000/second"),
    ("requests", "90000000/day"),
    ("tokens", "90000000000/day"),
    ("budget", "$10000/day"),
    ("requests", "50000000/hour"),
    ("tokens", "9000000000/hour"),
    ("budget", "$1000/hour"),
    ("requests", "900000000/month"),
    ("tokens", "900000000000/month"),
    ("budget", "$50000/week"),
    ("requests", "500000000/week"),
    ("tokens", "500000000000/week"),
)
_SHARED = ("deployment", "tenant", "feature")
_MODELS = ("gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4o-mini")
_NO_ROOM = 1e-9
"""A ceiling under which nothing fits: the last offer is the one that is taken."""

_MADE = {1: at_most(1.5), 2: at_most(1.5), 4: at_most(1.5), 8: at_most(1.8), 16: at_most(2.5)}
_SPREAD = {1: at_most(1.8), 2: at_most(2.0), 4: at_most(2.5)}


class _Shape(NamedTuple):
    config: Config
    goal: Goal


def run() -> Iterable[Result]:
    """Measure admissions of every shape in every round, then refusals."""
    yield from _admissions(dict(_shapes()))
    yield from _refusals()


def _shapes() -> Iterator[tuple[str, _Shape]]:
    for count, goal in _MADE.items():
        yield f"limits: {count}", _Shape(configuration(_tier(0, count)), goal)
    for count, goal in _SPREAD.items():
        yield f"8 limits, subjects: {count}", _Shape(_spread(8, count), goal)
    for count in range(1, len(_MODELS) + 1):
        *no, last = _MODELS[:count]
        offers = [*({"model": model, "ceiling": _NO_ROOM} for model in no), {"model": last}]
        config = configuration({**FOUR_LIMITS, "offers": offers})
        yield f"4 limits, offers: {count}", _Shape(config, at_most(1.8))


def _tier(begin: int, end: int) -> Mapping[str, Any]:
    """Return some of the limits as options of a tier, or of a table of `limits`."""
    options: defaultdict[str, Any] = defaultdict(list)
    for option, amount in _LIMITS[begin:end]:
        if option == "concurrency":
            options[option] = amount
        else:
            options[option].append(amount)
    return options


def _spread(limits: int, subjects: int) -> Config:
    """Return limits dealt out to a principal and what it shares with others."""
    each = limits // subjects
    shared = [
        {"of": kind, **_tier(each * number, each * (number + 1))}
        for number, kind in enumerate(_SHARED[: subjects - 1], 1)
    ]
    return configuration(_tier(0, each), shared)


def _admissions(shapes: Mapping[str, _Shape]) -> Iterator[Result]:
    callers = {
        name: _Caller(_apart(shape.config, f"{_server.PREFIX}:{number}"))
        for number, (name, shape) in enumerate(shapes.items())
    }
    bare = _Bare()
    variants: dict[str, Variant] = {_BARE: bare.run}
    variants |= {name: caller.run for name, caller in callers.items()}
    times = asyncio.run(alternate(_ROUNDS, variants))
    admitting = {name: caller.admitting[1:] for name, caller in callers.items()}
    server = Timings({_BARE: bare.seconds[1:], **admitting})
    settling = Timings({name: caller.settling[1:] for name, caller in callers.items()})
    yield Result(f"shapes, {_BARE}", times.us(_BARE), "us")
    yield Result(f"shapes, {_BARE}: on the server", server.us(_BARE), "us")
    for name, shape in shapes.items():
        title = f"shapes, {name}"
        yield Result(f"{title}: admission", times.us(name), "us")
        yield Result(f"{title}: admission / bare", times.ratio(name, _BARE), "x", shape.goal)
        yield Result(f"{title}: admission on the server", server.us(name), "us")
        yield Result(f"{title}: settlement on the server", settling.us(name), "us")
        callers[name].store.close()


def _apart(config: Config, prefix: str) -> Config:
    """Return a configuration with accounts of its own: other limits would change their layout."""
    store = config.store.model_copy(update={"prefix": prefix})
    return config.model_copy(update={"store": store})


class _Bare:
    """Calls a script that does nothing."""

    def __init__(self) -> None:
        self._client = _server.client()
        self._sha = str(self._client.script_load("return 1"))
        self.seconds: list[float] = []
        """On the server, of one in each round."""

    async def run(self) -> float:
        before = Toll.of(self._client)
        begin = perf_counter()
        for _ in range(_COUNT):
            self._client.evalsha(self._sha, 1, f"{_server.PREFIX}:bare")
        seconds = (perf_counter() - begin) / _COUNT
        self.seconds.append(Toll.of(self._client).since(before).script_us / _COUNT / 1e6)
        return seconds


class _Caller:
    """Admits calls of many users, and settles them outside of the time."""

    def __init__(self, config: Config) -> None:
        self._engine = build_engine(config)
        self._client = _server.client()
        self._call = model_call()
        self._users = [Principal(f"user-{number}", "acme") for number in range(USERS)]
        self.store = build_store(config)
        self.admitting: list[float] = []
        """Seconds on the server, of one in each round."""
        self.settling: list[float] = []

    async def run(self) -> float:
        granted: list[Grant] = []
        before = Toll.of(self._client)
        begin = perf_counter()
        for number in range(_COUNT):
            plan = self._engine.plan(self._users[number % USERS], self._call, "chat")
            decided = decision.decide(plan, self.store.admit(plan))
            if not isinstance(decided, Grant):
                raise TypeError(f"an admission was refused: {decided.message}")
            granted.append(decided)
        seconds = (perf_counter() - begin) / _COUNT
        between = Toll.of(self._client)
        for grant in granted:
            self.store.settle(grant, _USED)
        after = Toll.of(self._client)
        self.admitting.append(between.since(before).script_us / _COUNT / 1e6)
        self.settling.append(after.since(between).script_us / _COUNT / 1e6)
        return seconds


def _refusals() -> Iterator[Result]:
    config = configuration({**FOUR_LIMITS, "requests": "1/day"})
    engine = build_engine(config)
    # A store with a clock of its own remembers no refusals, so that tests see the server's.
    forgetful = _apart(config, f"llmb-test:{_server.PREFIX}").store
    stores = {
        "remembered": build_store(config),
        "asked each time": connect(forgetful, test_clock=lambda: int(time.time() * 1000)),
    }
    calls = {name: _Refused(engine, store) for name, store in stores.items()}
    variants: dict[str, Variant] = {name: each.run for name, each in calls.items()}
    times = asyncio.run(alternate(_REFUSED_ROUNDS, variants))
    for name, each in calls.items():
        title = f"refusals, {name}"
        yield Result(f"{title}: plan and decision included", 1e6 / times.us(name), "/s")
        goal = at_most(0) if name == "remembered" else None
        made, trips = each.make(_REFUSED_S)
        yield Result(f"{title}: round trips for each 10,000 calls", trips / made * 1e4, "", goal)
        yield Result(f"{title}: round trips a second", trips / _REFUSED_S, "/s")
        stores[name].close()
    _server.clean(forgetful.prefix)
    gain = times.ratio("asked each time", "remembered")
    yield Result("refusals a second: remembered / asked", gain, "x", at_least(3))


class _Refused:
    """Calls of one user who has used up its limit."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine, self._store = engine, store
        self._client = _server.client()
        self._call = model_call()
        self._user = Principal("spent")
        plan = engine.plan(self._user, self._call)
        granted = decision.decide(plan, store.admit(plan))
        if isinstance(granted, Grant):
            store.settle(granted, _USED)

    async def run(self) -> float:
        begin = perf_counter()
        for _ in range(_REFUSED):
            self._call_once()
        return (perf_counter() - begin) / _REFUSED

    def make(self, seconds: float) -> tuple[int, float]:
        """Make calls for some time; return how many, and the round trips they took."""
        made, before, end = 0, Toll.of(self._client).scripts, perf_counter() + seconds
        while perf_counter() < end:
            self._call_once()
            made += 1
        return made, Toll.of(self._client).scripts - before

    def _call_once(self) -> None:
        plan = self._engine.plan(self._user, self._call)
        decided = decision.decide(plan, self._store.admit(plan))
        if isinstance(decided, Grant) or decided.reason is not RefusalReason.EXHAUSTED:
            raise TypeError("a call that has to be refused was not")
