"""Reservations that grow while their call runs, and the length of answers that is learned."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_budget_mw import outputs
from llm_budget_mw.stores.base import Store
from llm_budget_mw.stores.connect import connect, connect_async
from llm_budget_mw.stores.memory import MemoryStore
from llm_budget_mw.stores.redis import AsyncRedisStore, RedisStore
from llm_budget_mw.types import Grant, LimitSet, Plan, Subject, SubjectLimits
from tests.servers import Proxy, ValkeyServer, fresh_prefix, lose
from tests.stores.conftest import make_bench, store_config
from tests.stores.kit import (
    DAY,
    MINUTE_MS,
    MONTH,
    NOTHING,
    SLIDING,
    SLOT,
    Bench,
    Driven,
    ManualClock,
    granted,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

THOUSAND = limits(limit(1000))


def take(bench: Bench, entry: LimitSet, fixed: int, output: int, lease_ms: int = 30_000) -> Grant:
    """Admit a call that holds some input and some output."""
    return granted(bench.admit(plan(entry, offers=[tokens(fixed, output)], lease_ms=lease_ms)))


def test_holds_more(bench: Bench) -> None:
    """A call that grew holds its input and all of the output it asked for."""
    grant = take(bench, THOUSAND, 100, 50)

    assert bench.store.grow(grant, 300) == 300
    assert bench.used(THOUSAND) == [400]


def test_repeated_it_grows_once(bench: Bench) -> None:
    """Asked for the same total again, as after a lost reply, nothing more is held."""
    grant = take(bench, THOUSAND, 100, 50)

    assert [bench.store.grow(grant, 300) for _ in range(3)] == [300, 300, 300]
    assert bench.used(THOUSAND) == [400]


def test_never_shrinks(bench: Bench) -> None:
    """A smaller total than is held changes nothing; the answer is what is held."""
    grant = take(bench, THOUSAND, 100, 50)
    bench.store.grow(grant, 300)

    assert bench.store.grow(grant, 40) == 300
    assert bench.used(THOUSAND) == [400]


def test_last_token_can_be_held(bench: Bench) -> None:
    """A call can grow into all that is left, and not one token further."""
    grant = take(bench, THOUSAND, 100, 50)

    assert bench.store.grow(grant, 901) == 50
    assert bench.store.grow(grant, 900) == 900
    assert bench.refuses(THOUSAND, 1)


def test_all_limits_or_none(bench: Bench) -> None:
    """What one limit has no room for is held in no other."""
    both = limits(limit(1000), limit(200, "cost", DAY))
    grant = take(bench, both, 100, 50)

    assert bench.store.grow(grant, 101) == 50
    assert bench.used(both) == [150, 150]
    assert bench.store.grow(grant, 100) == 100
    assert bench.used(both) == [200, 200]


def test_all_subjects_or_none(bench: Bench) -> None:
    """What one subject has no room for is held for no other."""
    alice, acme = someone("alice", THOUSAND), someone("acme", limits(limit(200)))
    grant = granted(bench.admit(plan(alice, acme, offers=[tokens(100, 50)])))

    assert bench.store.grow(grant, 101) == 50
    assert bench.used(alice, acme) == [150, 150]
    assert bench.store.grow(grant, 100) == 100
    assert bench.used(alice, acme) == [200, 200]


def test_a_subject_the_offer_spares_is_not_charged(bench: Bench) -> None:
    """Growth of one model's call is nothing to the limits of another's."""
    alice, other = someone("alice", THOUSAND), someone("other", limits(limit(10)))
    offer = tokens(100, 50)._replace(spares=2)
    grant = granted(bench.admit(plan(alice, other, offers=[offer])))

    assert bench.store.grow(grant, 500) == 500
    assert bench.used(alice, other) == [600, 0]


def test_requests_and_slots_do_not_grow(bench: Bench) -> None:
    """A call remains one call, also where no other one would be admitted."""
    full = limits(limit(1, "requests"), limit(1, "concurrency", SLOT), limit(1000))
    grant = take(bench, full, 100, 50)

    assert bench.store.grow(grant, 300) == 300
    assert bench.used(full) == [1, 1, 400]


def test_each_sampling_grows(bench: Bench) -> None:
    """Output is that of one sampling: three of them hold three times as much."""
    offer = tokens(100, 50)._replace(per_output_tokens=3)
    grant = granted(bench.admit(plan(THOUSAND, offers=[offer])))

    assert bench.store.grow(grant, 301) == 50
    assert bench.store.grow(grant, 300) == 300
    assert bench.used(THOUSAND) == [1000]


def test_a_ceiling_holds(bench: Bench) -> None:
    """A call grows no further than its offer could have been granted."""
    grant = granted(bench.admit(plan(THOUSAND, offers=[tokens(100, 50, ceiling=0.5)])))

    assert bench.store.grow(grant, 401) == 50
    assert bench.store.grow(grant, 400) == 400


def test_what_only_counts_refuses_no_growth(bench: Bench) -> None:
    """A limit in shadow mode counts what a call grows by, and never stands in its way."""
    shadow = limits(replace(limit(120), shadow=True))
    grant = take(bench, shadow, 100, 50)

    assert bench.store.grow(grant, 500) == 500
    assert bench.used(shadow) == [600]


def test_what_operators_added_can_be_held(bench: Bench) -> None:
    """A call grows into a raise, also one that came after its admission."""
    both = limits(limit(200, name="tokens"))
    grant = take(bench, both, 100, 50)
    assert bench.store.grow(grant, 150) == 50
    bench.store.amend(Subject("acme", "alice"), "add", "raise tokens 50 0 more")

    assert bench.store.grow(grant, 151) == 50
    assert bench.store.grow(grant, 150) == 150


def test_what_is_carried_over_can_be_held(bench: Bench) -> None:
    """A call grows into what the window before has left."""
    carrying = limits(replace(limit(200), carry=100))
    bench.settle(bench.take(carrying, 150), 150)
    bench.clock.advance(MINUTE_MS)
    grant = take(bench, carrying, 100, 50)

    assert bench.store.grow(grant, 151) == 50
    assert bench.store.grow(grant, 150) == 150


def test_what_weighs_of_the_window_before_stands_in_the_way(bench: Bench) -> None:
    """In a sliding window there is room for what the window before does not hold any more."""
    sliding = limits(limit(1000, window=SLIDING))
    bench.settle(bench.take(sliding, 800), 800)
    bench.clock.advance(MINUTE_MS)
    grant = take(bench, sliding, 100, 50)
    bench.clock.advance(MINUTE_MS // 2)

    assert bench.store.grow(grant, 501) == 50
    assert bench.store.grow(grant, 500) == 500


def test_a_call_grows_in_the_window_it_began_in(bench: Bench) -> None:
    """What it holds more is nothing to the window that has begun meanwhile."""
    grant = take(bench, THOUSAND, 100, 50, lease_ms=5 * MINUTE_MS)
    bench.clock.advance(MINUTE_MS)
    next_one = take(bench, THOUSAND, 500, 500)

    assert bench.store.grow(grant, 901) == 50
    assert bench.store.grow(grant, 900) == 900
    assert bench.used(THOUSAND) == [1000]
    assert [bench.settle(each, 10) for each in (grant, next_one)] == ["1", "1"]
    assert bench.used(THOUSAND) == [10]


def test_a_window_long_over_has_no_limit_any_more(bench: Bench) -> None:
    """A call that has outlived its window twice may go on; a longer window still counts it."""
    both = limits(limit(200), limit(1000, window=DAY))
    grant = take(bench, both, 100, 50)
    for _ in range(2):
        bench.clock.advance(MINUTE_MS)
        assert bench.store.renew(grant)
        bench.take(both)

    assert bench.store.grow(grant, 899) == 50
    assert bench.store.grow(grant, 898) == 898
    assert bench.used(both) == [1, 1000]


def test_calendar_windows(bench: Bench) -> None:
    """A month counts what grew in it, and what began in it and grew after it."""
    month = limits(limit(1000, window=MONTH))
    grant = take(bench, month, 100, 50, lease_ms=40 * 86_400_000)
    assert bench.store.grow(grant, 200) == 200
    bench.clock.advance(31 * 86_400_000)

    assert bench.store.grow(grant, 901) == 200
    assert bench.store.grow(grant, 900) == 900
    assert bench.used(month) == [0]


@pytest.mark.parametrize("used", [30, 400])
def test_settling_replaces_all_that_was_held(bench: Bench, used: int) -> None:
    """After the settlement nothing of the growth is left, whatever was used."""
    grant = take(bench, THOUSAND, 100, 50)
    bench.store.grow(grant, 800)

    assert bench.settle(grant, used) == "1"
    assert bench.used(THOUSAND) == [used]


def test_release_restores(bench: Bench) -> None:
    """A call that did not happen leaves nothing, although it had grown."""
    grant = take(bench, THOUSAND, 100, 50)
    bench.store.grow(grant, 800)

    assert bench.store.settle(grant, NOTHING) == "1"
    assert bench.used(THOUSAND) == [0]


def test_growth_after_the_settlement_is_refused(bench: Bench) -> None:
    """What arrives late holds nothing: nobody would let go of it."""
    grant = take(bench, THOUSAND, 100, 50)
    bench.settle(grant, 120)

    assert bench.store.grow(grant, 300) == 50
    assert bench.used(THOUSAND) == [120]


def test_growth_of_what_expired_is_refused(bench: Bench) -> None:
    """What was charged by expiry does not grow any more."""
    grant = take(bench, THOUSAND, 100, 50, lease_ms=1000)
    bench.clock.advance(1000)
    assert bench.used(THOUSAND) == [150]

    assert bench.store.grow(grant, 300) == 50
    assert bench.used(THOUSAND) == [150]


def test_growth_of_what_nobody_knows_is_refused(bench: Bench) -> None:
    """A store that has lost a reservation, or never heard of it, holds nothing for it."""
    asked: Plan = plan(THOUSAND, offers=[tokens(100, 50)])

    assert bench.store.grow(Grant(asked, asked.offers[0], 50, None), 300) == 50
    assert bench.used(THOUSAND) == [0]


def test_expiry_charges_what_had_grown(bench: Bench) -> None:
    """Of a killed process all that its call held is charged, and a late settlement corrects it."""
    grant = take(bench, THOUSAND, 100, 50, lease_ms=1000)
    bench.store.grow(grant, 300)
    bench.clock.advance(1000)

    assert bench.used(THOUSAND) == [400]
    assert bench.settle(grant, 120) == "3"
    assert bench.used(THOUSAND) == [120]


def test_renewal_and_growth_leave_each_other_alone(bench: Bench) -> None:
    """A renewed call has grown, and a call that grew keeps its lease."""
    grant = take(bench, THOUSAND, 100, 50, lease_ms=1000)
    bench.store.grow(grant, 300)
    bench.clock.advance(900)
    assert bench.store.renew(grant)
    bench.store.grow(grant, 400)
    bench.clock.advance(900)

    assert bench.used(THOUSAND) == [500]


def test_limits_in_another_order(bench: Bench) -> None:
    """A call admitted under limits that were changed since grows in those it was admitted to."""
    before = limits(limit(1000, name="a"), limit(500, "cost", name="b"))
    grant = take(bench, before, 100, 50)
    after = limits(limit(500, "cost", name="b"), limit(9, "requests", name="c"))
    bench.take(after, 1)

    assert bench.store.grow(grant, 400) == 50
    assert bench.store.grow(grant, 399) == 399
    assert bench.used(after) == [500, 1]
    assert bench.used(before) == [499, 500]


@pytest.fixture(params=["threads", "loop"])
def parted(request: pytest.FixtureRequest, valkey: ValkeyServer) -> Generator[Bench]:
    """Give a store that may reach one partition with a script, as on a cluster."""
    clock, prefix = ManualClock(), fresh_prefix()
    store: Store
    if request.param == "threads":
        client = redis.Redis(port=valkey.port)
        store = RedisStore(client, prefix=prefix, partitioned=True, test_clock=clock)
    else:
        store = Driven(
            AsyncRedisStore(
                lambda: redis.asyncio.Redis(port=valkey.port),
                prefix=prefix,
                deadline_s=5,
                partitioned=True,
                test_clock=clock,
            )
        )
    yield Bench(store, clock)
    store.close()


def test_partitions_grow_one_after_the_other(parted: Bench) -> None:
    """The least that all of them hold is held; a settlement lets go of what some hold beyond."""
    apart = [
        SubjectLimits(Subject("acme", "alice"), THOUSAND),
        SubjectLimits(Subject("deployment", "all"), limits(limit(300))),
    ]
    asked = plan(*apart, offers=[tokens(100, 50)])
    grant = granted(parted.admit(asked))

    assert parted.store.grow(grant, 400) == 50
    assert parted.store.grow(grant, 150) == 150
    assert parted.store.grow(grant, 201) == 50 + 100
    assert parted.store.grow(grant, 200) == 200
    assert parted.settle(grant, 120) == "11"
    assert parted.used(*apart) == [120, 120]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(0, 60), st.integers(0, 60)),
        st.tuples(st.just("grow"), st.integers(0, 5), st.integers(0, 300)),
        st.tuples(st.just("settle"), st.integers(0, 5), st.integers(0, 200)),
        st.tuples(st.just("pass"), st.integers(1, 90_000), st.just(0)),
    ),
    max_size=25,
)


@contextmanager
def side_by_side(url: str) -> Generator[tuple[Bench, Bench]]:
    clock = ManualClock()
    memory, valkey = make_bench("memory", "", clock), make_bench("valkey", url, clock)
    yield memory, valkey
    memory.store.close()
    valkey.store.close()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_both_stores_agree(valkey: ValkeyServer, steps: list[tuple[str, int, int]]) -> None:
    """Whatever is admitted, grown and settled at any time: same answers, same counters."""
    several = limits(limit(300), limit(350, "cost", SLIDING), limit(500, "cost", DAY, name="day"))
    with side_by_side(valkey.url) as benches:
        plans: list[list[Grant]] = [[], []]
        for verb, first, second in steps:
            seen: list[int | str] = []
            asked = plan(several, offers=[tokens(first, second, least=1)], lease_ms=120_000)
            if verb == "pass":
                benches[0].clock.advance(first)
            for bench, grants in zip(benches, plans, strict=True):
                if verb == "admit":
                    decided = bench.admit(asked)
                    grants += [decided] if isinstance(decided, Grant) else []
                elif verb == "grow" and grants:
                    seen.append(bench.store.grow(grants[first % len(grants)], second))
                elif verb == "settle" and grants:
                    seen.append(bench.settle(grants[first % len(grants)], second))
            assert seen[:1] == seen[1:]
            assert benches[0].counters(several) == benches[1].counters(several)


# At once


FIT = 40


def grow_all(store: MemoryStore, grants: list[Grant]) -> list[int]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(store.grow, grants, repeat(101)))


def test_threads_never_hold_more_than_there_is() -> None:
    """Of 80 calls that hold 1 of 100 each and ask for 100 more, exactly as many grow as fit."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    store = MemoryStore()
    entry = limits(limit(FIT * 100 + 80, window=DAY))
    bench = Bench(store, ManualClock())
    grants = [granted(bench.admit(plan(entry, offers=[tokens(0, 1)]))) for _ in range(80)]

    grown = grow_all(store, grants)
    sys.setswitchinterval(before)

    assert sorted(grown) == [1] * (80 - FIT) + [101] * FIT


async def test_tasks_never_hold_more_than_there_is(valkey: ValkeyServer) -> None:
    """The same on an event loop, with the commands of a turn in one write."""
    store = connect_async(store_config(valkey.url))
    entry = limits(limit(FIT * 100 + 80, window=DAY))
    plans = [plan(entry, offers=[tokens(0, 1)]) for _ in range(80)]
    admitted = await asyncio.gather(*map(store.admit, plans))
    grants = [Grant(p, p.offers[0], 1, a) for p, a in zip(plans, admitted, strict=True)]

    grown = await asyncio.gather(*(store.grow(grant, 101) for grant in grants))
    await store.close()

    assert sorted(grown) == [1] * (80 - FIT) + [101] * FIT


def test_a_lost_reply_grows_once(valkey: ValkeyServer, proxy: Proxy) -> None:
    """What the client of the store tries again under its id is held once."""
    store = connect(store_config(proxy.url))
    entry = limits(limit(1000, window=DAY))
    grant = granted(Bench(store, ManualClock()).admit(plan(entry, offers=[tokens(100, 50)])))
    proxy.once(lose)

    assert store.grow(grant, 300) == 300
    assert store.admit(plan(entry, offers=[tokens(1)])).counters[2] == 401
    store.close()


# The length of answers


def test_counts_of_all_processes_add_up(bench: Bench) -> None:
    """What one process noted comes back with what others did, each name by itself."""
    bench.store.learn({"chat/big": {4: 2, 9: 1}})

    learned = bench.store.learn({"chat/big": {4: 1}, "chat/small": {}})

    assert learned == {"chat/big": {4: 3, 9: 1}, "chat/small": {}}


def test_old_answers_weigh_less(bench: Bench) -> None:
    """Beyond their number all counts are halved, and what is rare is forgotten."""
    bench.store.learn({"chat/big": {1: 1, 4: outputs.MOST_ANSWERS - 1}})

    assert bench.store.learn({"chat/big": {9: 4}}) == {"chat/big": {4: 499, 9: 2}}
    assert bench.store.learn({"chat/big": {}}) == {"chat/big": {4: 499, 9: 2}}


def test_histograms_expire(valkey: ValkeyServer, client: redis.Redis) -> None:
    """A histogram nobody adds to is gone after a month; asking for one makes none."""
    config = store_config(valkey.url)
    store = connect(config)
    store.learn({"chat/big": {4: 1}, "chat/small": {}})

    key = f"{config.prefix}:1:{{outputs}}:chat/big"
    bare: Any = client
    keys = bare.keys(f"{config.prefix}:*")
    assert keys == [key.encode()]
    assert 0 < client.pttl(key) <= outputs.KEEP_MS
    store.close()
