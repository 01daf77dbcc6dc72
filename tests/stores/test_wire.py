"""What is in the server: names, lifetimes, sizes; and whose clock counts."""

from __future__ import annotations

import itertools
import struct
import time

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_budget_mw.errors import StoreError
from llm_budget_mw.stores.redis import RedisStore
from llm_budget_mw.subjects import subject_of
from llm_budget_mw.types import Charges, Grant, LimitSet, SubjectLimits
from tests.servers import fresh_prefix
from tests.stores.kit import (
    DAY,
    DAY_MS,
    MINUTE_MS,
    MONTH,
    NOTHING,
    SLIDING,
    SLOT,
    START_MS,
    UNFIT,
    Bench,
    ManualClock,
    limit,
    limits,
    plan,
    someone,
    tokens,
)

FOUR = limits(
    limit(20, "requests"),
    limit(10_000, "tokens", SLIDING),
    limit(5_000_000_000, "cost", MONTH),
    limit(3, "concurrency", SLOT),
)
KEEP_MS = DAY_MS


def admit(store: RedisStore, each: LimitSet, lease_ms: int = 30_000) -> Grant:
    asked = plan(someone("user/alice", each), offers=[tokens(100)], lease_ms=lease_ms)
    return Grant(asked, asked.offers[0], 0, store.admit(asked))


def keys(client: redis.Redis, prefix: str) -> list[str]:
    return sorted(key.decode() for key in client.scan_iter(f"{prefix}:*"))


def test_name_of_a_key(client: redis.Redis) -> None:
    """A subject is one key: prefix, version of the layout, partition as hash tag, subject."""
    prefix = fresh_prefix()
    admit(RedisStore(client, prefix=prefix), FOUR)

    assert keys(client, prefix) == [f"{prefix}:1:{{acme}}:user/alice"]


def test_refusal_makes_no_key(client: redis.Redis) -> None:
    """Who is refused the first time takes no memory."""
    prefix = fresh_prefix()
    admit(RedisStore(client, prefix=prefix), limits(limit(0, "requests")))

    assert keys(client, prefix) == []


@pytest.mark.parametrize(
    ("each", "least_ms"),
    [
        (limits(limit(5, "requests")), 2 * MINUTE_MS),
        (limits(limit(5, "requests", DAY)), 2 * DAY_MS),
        (FOUR, 33 * DAY_MS),
        (limits(limit(3, "concurrency", SLOT)), 90_000),
    ],
    ids=["minute", "day", "month", "slots"],
)
def test_key_lives_as_long_as_it_is_needed(
    client: redis.Redis, each: LimitSet, least_ms: int
) -> None:
    """A key lives as long as its longest window can still be read, and at least the lease."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    for _ in range(3):
        admit(store, each, lease_ms=90_000)

    lifetime = client.pttl(keys(client, prefix)[0])
    assert least_ms - 5_000 < lifetime <= 1.25 * least_ms


def test_renewal_keeps_the_key(client: redis.Redis) -> None:
    """A call longer than its windows keeps its reservation by renewing it."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    grant = admit(store, limits(limit(3, "concurrency", SLOT)), lease_ms=60_000)
    client.pexpire(keys(client, prefix)[0], 1_000)

    assert store.renew(grant)
    assert client.pttl(keys(client, prefix)[0]) > 50_000


@pytest.mark.parametrize("known", [True, False])
def test_settlement_without_admission_is_remembered(client: redis.Redis, known: bool) -> None:
    """What tells a repetition apart lives a day, though the windows are of a minute."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    grant = admit(store, limits(limit(5, "requests")))
    if not known:
        client.delete(*keys(client, prefix))
    unheard = grant._replace(admission=None)

    assert [store.settle(unheard, NOTHING) for _ in "12"] == ["1" if known else "4", "2"]
    assert client.pttl(keys(client, prefix)[0]) > KEEP_MS - 5_000


def test_lost_key_is_charged_again_from_nothing(client: redis.Redis) -> None:
    """If the server lost a subject, its running calls are still charged, once."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    each = limits(limit(1000, window=DAY))
    lost = admit(store, each)
    client.delete(*keys(client, prefix))

    assert [store.settle(lost, Charges(1, 70, 0)) for _ in "123"] == ["4", "2", "2"]
    assert store.settle(admit(store, each), Charges(1, 1, 0)) == "1"
    assert store.admit(plan(someone("user/alice", each))).counters[1] == 71


def test_repeated_admission_where_one_subject_was_lost(client: redis.Redis) -> None:
    """An admission is repeated, not made again, as long as one of its subjects knows it."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    each = limits(limit(1000, window=DAY))
    asked = plan(someone("alice", each), someone("bob", each), offers=[tokens(100)])
    store.admit(asked)
    client.delete(keys(client, prefix)[1])

    assert store.admit(asked).offer == 1
    assert store.admit(plan(someone("alice", each), offers=[UNFIT])).counters[2] == 100


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "dave", "erin"])
def test_many_reservations_expire_a_page_at_a_time(client: redis.Redis, name: str) -> None:
    """However many calls were lost at once, some admissions later all are collected."""
    clock = ManualClock()
    bench = Bench(RedisStore(client, prefix=fresh_prefix(), test_clock=clock), clock)
    many = someone(name, limits(limit(10_000, window=DAY)))
    for _ in range(300):
        bench.take(many, 1, lease_ms=1_000)
    clock.advance(1_000)

    assert bench.counters(many)[0].held > 0
    bench.take(many, 10, lease_ms=500)  # while the collection is under way
    for _ in range(10):
        bench.counters(many)
    assert bench.counters(many)[0][1:3] == (300, 10)
    clock.advance(500)
    for _ in range(10):
        bench.counters(many)
    assert bench.counters(many)[0][1:3] == (310, 0)


def test_memory_of_a_principal(client: redis.Redis) -> None:
    """A principal with four limits and two calls under way takes less than 1 KB."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    for _ in range(20):
        store.settle(admit(store, FOUR), Charges(1, 50, 5000))
    for _ in range(2):
        admit(store, FOUR)

    assert (client.memory_usage(keys(client, prefix)[0]) or 0) in range(1, 1024)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    one=st.tuples(st.none() | st.text(min_size=1), st.text(min_size=1)),
    two=st.tuples(st.none() | st.text(min_size=1), st.text(min_size=1)),
)
def test_ids_cannot_forge_keys(
    one: tuple[str | None, str], two: tuple[str | None, str], client: redis.Redis
) -> None:
    """Different principals have different keys with one hash tag each, whatever their ids are."""
    store = RedisStore(client, prefix=(prefix := fresh_prefix()))
    each = limits(limit(5, "requests"))
    for principal in {one, two}:
        store.admit(plan(SubjectLimits(subject_of(*principal), each)))

    found = keys(client, prefix)
    assert len(found) == len({one, two})
    assert all(key.count("{") == key.count("}") == 1 and key.isascii() for key in found)
    client.delete(*found)


def test_test_clock_needs_the_prefix_of_tests(client: redis.Redis) -> None:
    """A store for others cannot be given a clock."""
    with pytest.raises(ValueError, match="llmb-test:"):
        RedisStore(client, prefix="llmb", test_clock=ManualClock())


def test_server_ignores_a_given_time_elsewhere(client: redis.Redis) -> None:
    """A time sent under any other prefix changes nothing: the server's own clock decides."""
    prefix = fresh_prefix()

    class Smuggler:
        """A client that sends commands under another prefix than the store thinks."""

        def evalsha(self, sha: str, numkeys: int, /, *rest: str | bytes) -> object:
            key, args = str(rest[0]), rest[1:]
            return client.evalsha(sha, numkeys, key.replace("llmb-test:", "llmb-temp:"), *args)

        def eval(self, script: str, numkeys: int, /, *rest: str | bytes) -> object:
            key, args = str(rest[0]), rest[1:]
            return client.eval(script, numkeys, key.replace("llmb-test:", "llmb-temp:"), *args)

        def close(self) -> None: ...

    store = RedisStore(Smuggler(), prefix=prefix, test_clock=ManualClock(START_MS))
    admission = store.admit(plan(limits(limit(5, "requests"))))

    assert abs(admission.now_ms - time.time() * 1000) < 60_000
    client.delete(*keys(client, prefix.replace("llmb-test:", "llmb-temp:")))


def test_clock_of_another_host_does_not_matter(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is a month off asks twice once, then knows the server's."""
    month = limits(limit(1000, "cost", MONTH))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 40 * DAY_MS / 1000)
    store = RedisStore(client, prefix=fresh_prefix())

    assert admit(store, month).admission
    assert abs(store.now_ms() - real() * 1000) < 60_000


def test_clock_that_cannot_be_followed() -> None:
    """A server whose time is outside every window it is asked for is an error, not a loop."""

    class Runaway:
        def evalsha(self, sha: str, numkeys: int, /, *rest: str | bytes) -> object:
            return struct.pack("<5d", START_MS, -1, 0, 0, 0)

        def eval(self, script: str, numkeys: int, /, *rest: str | bytes) -> object: ...

        def close(self) -> None: ...

    with pytest.raises(StoreError, match="clock"):
        RedisStore(Runaway()).admit(plan(FOUR))


def test_early_clock_of_another_host_turns_no_window_over(client: redis.Redis) -> None:
    """A charge without reservation by a clock five minutes early stays in the present window."""
    prefix, server = fresh_prefix(), ManualClock()
    each = limits(limit(1000))
    admit(RedisStore(client, prefix=prefix, test_clock=server), each)
    asked = plan(someone("user/alice", each))
    early = itertools.chain([START_MS + 5 * MINUTE_MS], itertools.repeat(START_MS))
    host = RedisStore(client, prefix=prefix, test_clock=lambda: next(early))

    assert host.settle(Grant(asked, asked.offers[0], 0, None), Charges(1, 30, 0)) == "4"
    counters = host.admit(plan(someone("user/alice", each))).counters
    assert counters[:3] == (START_MS, 30, 101)
