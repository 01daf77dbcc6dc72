"""Memory against Valkey where the model has no say: additions, switches, carry, shadow, models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_budget_mw.stores.base import AmendVerb, Store, SwitchVerb
from llm_budget_mw.types import NOTHING, Charges, Grant, Limit, LimitSet, Subject, Watch
from tests.servers import ValkeyServer
from tests.stores.conftest import make_bench
from tests.stores.kit import (
    DAY,
    DAY_MS,
    MINUTE_MS,
    MONTH,
    SLIDING,
    START_MS,
    UNFIT,
    ManualClock,
    limit,
    limits,
    plan,
    someone,
    tokens,
)
from tests.stores.test_machine import EXAMPLES

T = TypeVar("T")


def with_options(each: Limit, **options: Any) -> Limit:
    return dataclasses.replace(each, **options)


# The month is in both: the store in memory forgets subjects that have only short windows.
KEPT = limit(10**6, "cost", MONTH, name="kept")
SETS = [
    LimitSet(
        (
            KEPT,
            with_options(limit(300, name="a"), carry=150),
            with_options(limit(900, "cost", DAY, name="b"), carry=400),
        ),
        Watch((0.1, 0.5, 1.0, 1.2), factor=1.5, least_nano=100),
    ),
    limits(
        KEPT,
        limit(250, name="a", window=SLIDING),
        with_options(limit(200, "tokens", MONTH, name="c"), shadow=True, carry=90),
        with_options(limit(4, "requests", name="b"), shadow=True),
    ),
]
NAMES = ["alice", "bob"]
SWITCHES = ("model/large", "model/small", "*", "acme:alice")
until = st.sampled_from([0, START_MS + 1, START_MS + 3 * MINUTE_MS, START_MS + 2 * DAY_MS])
lines = st.builds(
    "{} {} {} {} id{}".format,
    st.sampled_from(["raise", "credit", "set"]),
    st.sampled_from("abcx"),
    st.integers(0, 500),
    until,
    st.integers(0, 6),
)
steps = st.one_of(
    st.tuples(
        st.just("admit"),
        st.sampled_from(NAMES),
        st.sampled_from(SETS),
        st.integers(1, 400),
        st.integers(0, 3),
    ),
    st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 500)),
    st.tuples(st.just("amend"), st.sampled_from(NAMES), st.just("add"), lines),
    st.tuples(
        st.just("amend"),
        st.sampled_from(NAMES),
        st.just("drop"),
        st.builds("id{}".format, st.integers(0, 6)),
    ),
    st.tuples(
        st.just("amend"),
        st.sampled_from(NAMES),
        st.just("reset"),
        st.sampled_from(["a", "b a", "c"]),
    ),
    st.tuples(
        st.just("switch"),
        st.sampled_from(["stop", "resume"]),
        st.sampled_from(SWITCHES),
        st.builds("{} because".format, until),
    ),
    st.tuples(st.just("wait"), st.sampled_from([1, 20_000, MINUTE_MS, 90_000, DAY_MS, 9 * DAY_MS])),
)


class Twins:
    """Two stores that must answer alike, and the grants they have given."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.stores = [make_bench(kind, url, self.clock).store for kind in ("memory", "valkey")]
        self.grants: list[Grant] = []

    def same(self, ask: Callable[[Store], T]) -> T:
        one, other = map(ask, self.stores)
        assert one == other
        return one

    def admit(self, name: str, each: LimitSet, fixed: int, spares: int) -> None:
        offers = [tokens(fixed, 50, least=1, ceiling=0.8), tokens(fixed // 2)]
        offers[0] = offers[0]._replace(spares=spares)
        asked = plan(someone(name, each), someone("everyone", SETS[0]), offers=offers)
        asked = asked._replace(switches=SWITCHES)
        answer = self.same(lambda store: store.admit(asked))
        if answer.offer > 0:
            offer = asked.offers[answer.offer - 1]
            self.grants.append(Grant(asked, offer, answer.output, answer))

    def settle(self, number: int, used: int) -> None:
        if self.grants:
            grant = self.grants.pop(number % len(self.grants))
            charges = Charges(1, used, used) if used else NOTHING
            self.same(lambda store: store.settle(grant, charges))

    def amend(self, name: str, verb: AmendVerb, what: str) -> None:
        self.same(lambda store: store.amend(Subject("acme", name), verb, what))

    def switch(self, verb: SwitchVerb, name: str, value: str) -> None:
        self.same(lambda store: store.switch(verb, name, value))

    def wait(self, ms: int) -> None:
        self.clock.advance(ms)

    def compare(self) -> None:
        for name in NAMES:
            for each in SETS:
                question = plan(someone(name, each), offers=[UNFIT])
                one, other = (store.admit(question) for store in self.stores)
                assert one == other

    def close(self) -> None:
        for store in self.stores:
            store.close()


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
@given(script=st.lists(steps, max_size=30))
def test_memory_does_what_valkey_does(valkey: ValkeyServer, script: list[tuple[Any, ...]]) -> None:
    """Both answer every sequence of calls and operations alike, to the last unit."""
    twins = Twins(valkey.url)
    try:
        for verb, *rest in script:
            getattr(twins, verb)(*rest)
            twins.compare()
    finally:
        twins.close()
