"""What only the store in memory has to care about."""

from __future__ import annotations

import gc

from llm_budget_mw.stores._ledger import Account
from llm_budget_mw.stores.memory import AsyncMemoryStore, MemoryStore
from llm_budget_mw.types import Charges
from tests.stores.kit import (
    DAY,
    DAY_MS,
    MINUTE_MS,
    NOTHING,
    SLOT,
    START_MS,
    Bench,
    ManualClock,
    granted,
    limit,
    limits,
    plan,
    someone,
)

MINUTE = limits(limit(5, "requests"))


def test_forgets_who_does_not_come_back() -> None:
    """Memory does not grow with principals whose windows and leases are over."""
    others = accounts()  # those of other tests in this process
    store = MemoryStore(clock := ManualClock())
    for number in range(500):
        store.admit(plan(someone(f"user/{number}", MINUTE)))
        clock.advance(MINUTE_MS)

    assert accounts() - others < 20
    store.close()


def accounts() -> int:
    gc.collect()
    # Not `isinstance`: that asks lazy objects of other libraries, which then wake up.
    return sum(type(each) is Account for each in gc.get_objects())


def test_keeps_a_long_call() -> None:
    """A call that is renewed keeps its slot, however short the windows beside it."""
    slots = limits(limit(1, "concurrency", SLOT), limit(5, "requests"))
    bench = Bench(MemoryStore(clock := ManualClock()), clock)
    grant = bench.take(slots, lease_ms=30_000)
    for _ in range(30):
        clock.advance(20_000)
        assert bench.store.renew(grant)
        bench.admit(plan(someone("bob", MINUTE)))

    assert bench.refuses(slots)
    assert bench.settle(grant, 1) == "1"


def test_keeps_a_debt_as_long_as_its_window() -> None:
    """A charge without reservation is there as long as its window, also if nobody comes by."""
    week = limits(limit(100, window=DAY))
    bench = Bench(MemoryStore(clock := ManualClock()), clock)
    asked = plan(week)
    bench.settle(granted(bench.admit(asked))._replace(admission=None), 70)
    clock.advance(DAY_MS - 1)
    for _ in range(10):
        bench.admit(plan(someone("bob", MINUTE)))

    assert bench.used(week) == [70]


def test_closing_forgets() -> None:
    """A closed store starts from nothing."""
    bench = Bench(MemoryStore(clock := ManualClock()), clock)
    bench.take(MINUTE)
    bench.store.close()

    assert bench.used(MINUTE) == [0]


async def test_asynchronous_store_shares_what_it_is_given() -> None:
    """The asynchronous store may stand on a synchronous one: then they count together."""
    store = MemoryStore(ManualClock())
    both = AsyncMemoryStore(store)
    asked = plan(MINUTE)
    grant = granted(Bench(store, ManualClock()).admit(asked))

    assert await both.renew(grant)
    assert await both.settle(grant, Charges(1, 1, 1)) == "1"
    assert (await both.admit(plan(MINUTE))).counters[:3] == (START_MS, 1, 1)
    await both.close()


def test_uses_the_clock_of_the_host() -> None:
    """Without a test clock, time is the host's."""
    store = MemoryStore()

    assert store.now_ms() <= store.admit(plan(MINUTE)).now_ms <= store.now_ms()


def test_release_of_a_stranger_is_remembered() -> None:
    """The release of an admission that never came keeps it from coming later."""
    bench = Bench(MemoryStore(clock := ManualClock()), clock)
    asked = plan(MINUTE)
    lost = granted(Bench(MemoryStore(clock), clock).admit(asked))._replace(admission=None)

    assert bench.store.settle(lost, NOTHING) == "4"
    assert not bench.admit(asked).admitted
